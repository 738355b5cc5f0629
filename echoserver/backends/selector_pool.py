"""A readiness loop and a pool of threads (the half-sync/half-reactive pattern).

The main thread only learns which sockets are ready; a pool of threads reads, answers, and gives
each socket back. A thread is held for a message, not for a connection: 400 connections are
served by 64 threads, and nobody starves. Each socket is armed for one event at a time
(EPOLLONESHOT, epoll(7)), so no two threads ever run one flow.

A connection costs its flow, about 2 KiB; a message costs a hand-over to a thread and back, about
a quarter more than in one thread. It pays where handlers block or take long, and not for an echo.
"""

import os
import select
import threading
import time
from collections import deque
from queue import SimpleQueue

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.conversation.connection import Connection
from echoserver.drivers.callbacks import MOST_EVENTS, Task
from echoserver.drivers.readiness import ReadinessLoop
from echoserver.drivers.threads import start_pool
from echoserver.flow import Readable, Sleep, Wait, WaitResult
from echoserver.service import Service


class SelectorPoolBackend(Backend):
    """Hands every ready connection to a thread of a pool."""

    summary = "a readiness loop that hands ready connections to a pool of threads"
    cost = "about 2 KiB; a message a hand-over"
    reads = frozenset({"pool_size"})

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept and poll in this thread, serve in the pool's."""
        poller = Poller(service)
        start_pool(service.config.pool_size, poller.work, service.config.source("pool_size"))
        main = listener.flow(lambda connection: poller.hand_over(Client(poller, connection), None))
        Task(poller).run(main, poller.stop)
        poller.run()
        for _ in range(service.config.pool_size):
            poller.ready.put(None)


class Poller(ReadinessLoop):
    """The main thread's loop: knows who is ready, and has others serve them."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.lifecycle = service.lifecycle
        self.clients = select.epoll()
        """Their sockets, which threads arm, each for one event; the loop watches it as a whole."""
        self.ready: SimpleQueue[tuple[Client, WaitResult] | None] = SimpleQueue()
        self.waiting: dict[int, Client] = {}
        """Those that no thread has, by descriptor. Only the main thread takes one out."""
        self._timed: deque[tuple[Client, Wait]] = deque()
        self._inbox = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add_reader(self.clients.fileno(), self._dispatch)
        self.add_reader(self._inbox, self._arm_timers)

    def hand_over(self, client: "Client", expired: WaitResult) -> None:
        """Let a thread run the next step of a client, for whom nobody runs one now."""
        self.ready.put((client, expired))

    def work(self) -> None:
        """Run steps: what each thread of the pool does."""
        while (task := self.ready.get()) is not None:
            client, expired = task
            client.step(expired)

    def end_later(self, client: "Client", wait: Wait) -> None:
        """Let the wait of a client end when its time is over; called by the pool's threads."""
        self._timed.append((client, wait))
        os.eventfd_write(self._inbox, 1)

    def _dispatch(self) -> None:
        for fd, _ in self.clients.poll(0, MOST_EVENTS):
            if (client := self.waiting.pop(fd, None)) is not None:
                self.hand_over(client, None)

    def _arm_timers(self) -> None:
        os.eventfd_read(self._inbox)
        while self._timed:
            client, wait = self._timed.popleft()
            self.call_later(wait.seconds or 0.0, lambda c=client, w=wait: c.expire(w))  # type: ignore[misc] # a lambda's defaults


class Client:
    """One connection, its flow, and what it waits for."""

    def __init__(self, poller: Poller, connection: Connection) -> None:
        self._poller = poller
        self._fd = connection.sock.fileno()
        self._flow = connection.driven_by(self)
        self._wait: Wait | None = None
        self._registered = False
        # Between a thread's noting that it waits and arming its socket, the main thread must not
        # end that wait (`expire`): two threads would run one flow.
        self._lock = threading.Lock()

    def step(self, expired: WaitResult) -> None:
        """Run its flow until it waits for its socket."""
        try:
            while isinstance(wait := self._flow.send(expired), Sleep):
                time.sleep(wait.seconds)  # whatever takes time takes one of the pool's threads
                expired = None
        except (StopIteration, ValueError):  # its end; or the main thread is just abandoning it
            return
        poller = self._poller
        with self._lock:
            self._wait = wait
            poller.waiting[self._fd] = self
            event = select.EPOLLIN if isinstance(wait, Readable) else select.EPOLLOUT
            arm = poller.clients.modify if self._registered else poller.clients.register
            self._registered = True
            arm(self._fd, event | select.EPOLLONESHOT)
        # The drain may have begun in this step, and woken nobody: then it ends at once.
        if wait.seconds is not None or not poller.lifecycle.running:
            poller.end_later(self, wait)

    def expire(self, wait: Wait) -> None:
        """Main thread: end that wait, if it is still under way."""
        with self._lock:
            # After its end, the descriptor may be another client's.
            mine = self._wait is wait and self._poller.waiting.get(self._fd) is self
            if mine:
                del self._poller.waiting[self._fd]
        if mine:
            self._poller.hand_over(self, expired=True)

    def wake(self) -> None:
        """Main thread: end an open-ended wait for input."""
        wait = self._wait
        if isinstance(wait, Readable) and wait.seconds is None:
            self.expire(wait)

    def close(self) -> None:
        """Give its place in the epoll back, and wait for nothing any more."""
        self._wait = None
        if self._registered:
            self._poller.clients.unregister(self._fd)
