"""One thread and a readiness loop (UNP 6.8: TCP echo server, revisited, with select).

The kernel reports which sockets are ready, here through epoll(7); each is read and answered at
once, and no client waits for another one. What a thread would keep on its stack, a suspended flow
keeps: where it was, and what it waits for.

A connection costs its flow and an entry in the kernel's table, about 2 KiB; a message costs no
switch of threads. But there is one thread, so a handler that computes stops all others.
"""

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.drivers.callbacks import Task, start
from echoserver.drivers.readiness import ReadinessLoop
from echoserver.service import Service


class SelectorBackend(Backend):
    """Runs every flow on one readiness loop."""

    summary = "one thread, a readiness loop (epoll)"
    cost = "about 2 KiB"

    def serve(self, listener: Listener, service: Service) -> None:  # noqa: ARG002 - the flow drains it
        """Accept and serve on the loop."""
        loop = ReadinessLoop()
        main = listener.flow(lambda connection: start(loop, connection))
        Task(loop).run(main, on_end=loop.stop)
        loop.run()
