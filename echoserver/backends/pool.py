"""A fixed pool of threads (UNP 30.12: prethreaded, main thread calls accept).

All threads are started before the first client comes. The main thread accepts and hands each
connection to a thread that is free; the connection keeps it until it ends. Nothing is started or
queued under load: with every thread taken, accept waits, and clients wait in the kernel's queue.

So a pool of 64 under 400 clients that stay serves 64 and starves 336: right for short
conversations, wrong for long ones.
"""

from queue import SimpleQueue

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.config import Config
from echoserver.conversation.connection import Connection
from echoserver.drivers.threads import start_pool
from echoserver.service import Service


class PoolBackend(Backend):
    """Serves as many clients at a time as it has threads: ``--pool-size``, or the limit if less."""

    summary = "a fixed pool of threads; a connection keeps its thread until it ends"
    cost = "one of its threads"
    reads = frozenset({"pool_size"})

    @classmethod
    def concurrency(cls, config: Config) -> int:
        """Return the pool's size: the listener accepts no more than that at a time."""
        return config.pool_size

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept in this thread, serve in the pool's."""
        # The listener accepts no more clients than there are threads, so none waits here for long.
        waiting: SimpleQueue[Connection | None] = SimpleQueue()

        def work() -> None:
            while (connection := waiting.get()) is not None:
                connection.serve()

        # As many as can be connected: the pool's size, or --max-connections where that is less.
        start_pool(service.limit, work, service.config.source("pool_size"))
        for connection in listener:
            waiting.put(connection)
        service.drain()
        for _ in range(service.limit):
            waiting.put(None)
