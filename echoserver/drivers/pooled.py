"""Running flows on a pool of threads, none of which waits for a socket.

The states of a client, and the threads in which it is::

    hand_over ──► ready ──► step (a thread of the pool) ──► waiting, its socket armed once
        ▲                     │ a Sleep: in this thread        │
        └─────────────────────┴──── input, room, a timer, ◄────┘
                                    a wake-up (main thread)

So a flow has one thread at a time: a socket that is armed for one event (EPOLLONESHOT, epoll(7)) is
reported once, and only the main thread takes a client out of those that wait.
"""

import os
import select
import threading
import time
from collections import deque
from queue import SimpleQueue

from echoserver.drivers.callbacks import MAX_EVENTS
from echoserver.drivers.readiness import ReadinessLoop
from echoserver.flow import Drivable, Readable, Sleep, Wait, WaitResult
from echoserver.lifecycle.state import State


class Poller(ReadinessLoop):
    """The main thread's loop, which learns which clients are ready, and hands them to the pool."""

    def __init__(self, lifecycle: State) -> None:
        super().__init__()
        self.lifecycle = lifecycle
        self.clients = select.epoll()
        """The clients' sockets, which threads arm for one event each; the loop watches them all."""
        self.ready: SimpleQueue[tuple[Client, WaitResult] | None] = SimpleQueue()
        self.waiting: dict[int, Client] = {}
        """The clients that no thread has, by descriptor; only the main thread takes one out."""
        self._timer_requests: deque[tuple[Client, Wait]] = deque()
        self._inbox = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add_reader(self.clients.fileno(), self._dispatch)
        self.add_reader(self._inbox, self._arm_timers)

    def hand_over(self, client: "Client", expired: WaitResult) -> None:
        """Let a thread run the next step of a client that no thread has now."""
        self.ready.put((client, expired))

    def work(self) -> None:
        """Run steps of clients; each thread of the pool runs this."""
        while (task := self.ready.get()) is not None:
            client, expired = task
            client.step(expired)

    def end_later(self, client: "Client", wait: Wait) -> None:
        """End a client's wait when its time is over; the threads of the pool call this."""
        self._timer_requests.append((client, wait))
        os.eventfd_write(self._inbox, 1)

    def _dispatch(self) -> None:
        for fd, _ in self.clients.poll(0, MAX_EVENTS):
            if (client := self.waiting.pop(fd, None)) is not None:
                self.hand_over(client, None)

    def _arm_timers(self) -> None:
        os.eventfd_read(self._inbox)
        while self._timer_requests:
            client, wait = self._timer_requests.popleft()
            self.call_later(wait.seconds or 0.0, lambda c=client, w=wait: c.expire(w))  # type: ignore[misc] # a lambda's defaults


class Client:
    """One connection, its flow, and what it waits for."""

    def __init__(self, poller: Poller, connection: Drivable) -> None:
        self._poller = poller
        self._fd = connection.sock.fileno()
        self._flow = connection.driven_by(self)
        self._wait: Wait | None = None
        self._is_registered = False
        # While a thread records that a client waits, and arms its socket, the main thread must not
        # end that wait (`expire`), or two threads would run one flow.
        self._lock = threading.Lock()

    def step(self, expired: WaitResult) -> None:
        """Run the client's flow until it waits for its socket."""
        try:
            while isinstance(wait := self._flow.send(expired), Sleep):
                time.sleep(wait.seconds)  # a sleep occupies one of the pool's threads
                expired = None
        except (StopIteration, ValueError):  # the flow's end, or the main thread abandons it
            return
        poller = self._poller
        with self._lock:
            self._wait = wait
            poller.waiting[self._fd] = self
            event = select.EPOLLIN if isinstance(wait, Readable) else select.EPOLLOUT
            arm = poller.clients.modify if self._is_registered else poller.clients.register
            self._is_registered = True
            arm(self._fd, event | select.EPOLLONESHOT)
        # The drain may have begun during this step, when it could not wake this client.
        if wait.seconds is not None or not poller.lifecycle.running:
            poller.end_later(self, wait)

    def expire(self, wait: Wait) -> None:
        """End a wait in the main thread, if the client is still in it."""
        with self._lock:
            # After this client's end, its descriptor may be another client's.
            is_current = self._wait is wait and self._poller.waiting.get(self._fd) is self
            if is_current:
                del self._poller.waiting[self._fd]
        if is_current:
            self._poller.hand_over(self, expired=True)

    def wake(self) -> None:
        """End an open-ended wait for input; the main thread calls this."""
        wait = self._wait
        if isinstance(wait, Readable) and wait.seconds is None:
            self.expire(wait)

    def close(self) -> None:
        """Remove the client's socket from the epoll set, and cancel its wait."""
        self._wait = None
        if self._is_registered:
            self._poller.clients.unregister(self._fd)
