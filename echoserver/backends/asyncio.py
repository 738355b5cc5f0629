"""asyncio: flows as callbacks on the standard library's event loop.

The loop finds out which sockets are ready, and calls back (``loop.add_reader``). The flows read
and write the sockets themselves, because streams and protocols would add buffers between the socket
and the handler. Transports allocate 256 KiB for every read, go on reading while the peer takes no
output (unless they are paused), and have their own ways of closing.

A connection costs its flow, about 2 KiB. There is one thread, so a handler that computes
stops all others.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.drivers.callbacks import Task, start
from echoserver.service import Service


class AsyncioBackend(Backend):
    """Runs every flow on an asyncio event loop."""

    summary = "callbacks on an asyncio event loop"
    cost = "about 2 KiB"
    new_loop: ClassVar[Callable[[], asyncio.AbstractEventLoop]] = asyncio.new_event_loop

    def serve(self, listener: Listener, service: Service) -> None:  # noqa: ARG002 - the flow drains it
        """Accept and serve on the loop."""
        loop = type(self).new_loop()  # through the class, or it would be called as a method
        failures: list[BaseException | None] = []

        def fail(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            failures.append(context.get("exception"))
            loop.stop()

        # Only the listener can fail: connections keep their failures to themselves.
        loop.set_exception_handler(fail)  # or the loop would log it, and go on
        try:
            main = listener.flow(lambda connection: start(loop, connection))
            loop.call_soon(lambda: Task(loop).run(main, loop.stop))
            loop.run_forever()
        finally:
            loop.close()
        for failure in failures:
            raise failure or RuntimeError("the event loop failed")
