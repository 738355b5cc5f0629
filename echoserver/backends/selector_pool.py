"""A readiness loop and a pool of threads (the half-sync/half-reactive pattern).

The main thread only learns which sockets are ready; a pool of threads reads, answers, and gives
each socket back. A thread is held for a message, not for a connection: 400 connections are
served by 64 threads, and nobody starves. Each socket is armed for one event at a time
(EPOLLONESHOT, epoll(7)), so no two threads ever run one flow.

A connection costs its flow, about 2 KiB; a message costs a hand-over to a thread and back, about
a quarter more than in one thread. It pays where handlers block or take long, and not for an echo.
"""

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.drivers.callbacks import Task
from echoserver.drivers.pooled import Client, Poller
from echoserver.drivers.threads import start_pool
from echoserver.service import Service


class SelectorPoolBackend(Backend):
    """Hands every ready connection to a thread of a pool."""

    summary = "a readiness loop that hands ready connections to a pool of threads"
    cost = "about 2 KiB; a message a hand-over"
    reads = frozenset({"pool_size"})

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept and poll in this thread, serve in the pool's."""
        poller = Poller(service.lifecycle)
        start_pool(service.config.pool_size, poller.work, service.config.source("pool_size"))
        main = listener.flow(lambda connection: poller.hand_over(Client(poller, connection), None))
        Task(poller).run(main, poller.stop)
        poller.run()
        for _ in range(service.config.pool_size):
            poller.ready.put(None)
