"""A thread per client (UNP 30.10: concurrent, one thread per client).

The main thread accepts; each client gets a thread of its own, which blocks in recv and send and
leaves the scheduling to the kernel. Code reads top to bottom and one slow client delays nobody.
Under the GIL only one thread runs Python at a time, so computing does not scale, and on several
cores the threads fight for it after every system call.

A connection costs a thread: a stack of which a few pages are ever touched, and a context switch
per message. (Started directly, and not as a `threading.Thread`: that is 2.5 KiB more for each, and
its start waits until the thread runs.)

Threads that wait for the GIL do not just sleep: each wakes once in every switch interval, to ask
for it, and contends for its lock. Where a thousand clients leave in one moment, that is most of the
work; so the interval grows with the number of threads that could be waiting.
"""

import sys
import threading
from _thread import start_new_thread

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.service import Service

# Address space, not memory: the default of 8 MiB times thousands of threads would be refused.
STACK_SIZE = 512 * 1024

# Wakeups a second of threads that wait for the GIL: Python's 5 ms for up to 250 threads.
_MOST_WAKEUPS = 50_000
_LONGEST_INTERVAL = 0.1  # seconds that a thread may compute while others wait


class ThreadBackend(Backend):
    """Starts a thread for every client."""

    summary = "a thread per client"
    cost = "a thread: about 16 KiB"

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept in this thread, serve each client in one of its own."""
        threading.stack_size(STACK_SIZE)
        usual = sys.getswitchinterval()
        for connection in listener:
            crowded = min(service.open / _MOST_WAKEUPS, _LONGEST_INTERVAL)
            sys.setswitchinterval(max(usual, crowded))
            try:
                start_new_thread(connection.serve, ())  # `serve` never raises
            except RuntimeError as error:  # the system has no thread left
                connection.refuse(error)
        service.drain()
        sys.setswitchinterval(usual)
