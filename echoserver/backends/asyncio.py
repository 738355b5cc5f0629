"""asyncio: flows as callbacks on the standard library's event loop.

The loop tells which sockets are ready, and calls back. Reading and writing stay ours, by
``loop.add_reader``: streams and protocols would add buffers between the socket and the handler.
Transports allocate 256 KiB for every read, read on while nobody takes what is owed (unless told
otherwise), and close in ways of their own.

A connection costs its flow, about 2 KiB. One thread: whatever computes, stops everyone.
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
        loop = type(self).new_loop()  # through the class: it is not a method
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
