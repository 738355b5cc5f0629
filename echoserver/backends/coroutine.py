"""Coroutines made by hand: plain generators on a small scheduler.

A task runs until it would block; there it yields what it waits for, and the scheduler runs the
next task that can go on. This is what greenlets and ``async def`` do, in a page: a queue of tasks
that are ready, an epoll for those that wait for a socket, timers for those that wait for a time.

A connection costs its generators, about 2 KiB; a switch takes well under a microsecond. There is
one thread: switching helps tasks that wait, and cannot help while one computes.
"""

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.conversation.connection import Connection
from echoserver.drivers.coroutines import Coroutine, Scheduler
from echoserver.service import Service


class CoroutineBackend(Backend):
    """Runs a coroutine for every client."""

    summary = "a coroutine per client: generators on a small scheduler"
    cost = "about 2 KiB"

    def serve(self, listener: Listener, service: Service) -> None:  # noqa: ARG002 - the flow drains it
        """Accept in one coroutine, serve each client in one of its own."""
        scheduler = Scheduler()

        def serve(connection: Connection) -> None:
            coroutine = Coroutine(scheduler)
            coroutine.begin(connection.driven_by(coroutine))

        main = Coroutine(scheduler)
        main.begin(listener.flow(serve))
        scheduler.run(until=main)
