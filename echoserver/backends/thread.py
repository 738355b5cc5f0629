"""A thread per client (UNP 30.10: concurrent, one thread per client).

The main thread accepts; each client gets a thread of its own, which blocks in recv and send and
leaves the scheduling to the kernel. Code reads top to bottom, and a slow client delays no other.
Under the GIL only one thread runs Python at a time, so computing does not scale, and on several
cores the threads fight for it after every system call.

A connection costs a thread: a stack of which a few pages are ever touched, and a context switch
per message.
"""

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.drivers.threads import many_threads
from echoserver.service import Service


class ThreadBackend(Backend):
    """Starts a thread for every client."""

    summary = "a thread per client"
    cost = "a thread: about 16 KiB"

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept in this thread, serve each client in one of its own."""
        with many_threads(lambda: service.open) as start:
            for connection in listener:  # accepts, until the server drains
                try:
                    start(connection.serve)
                except RuntimeError as error:  # the system has no thread left
                    connection.refuse(error)
            service.drain()
