"""Running flows on a pool of threads, none of which waits for a socket.

What becomes of a client, and in which thread::

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

from echoserver.drivers.callbacks import MOST_EVENTS
from echoserver.drivers.readiness import ReadinessLoop
from echoserver.flow import Drivable, Readable, Sleep, Wait, WaitResult
from echoserver.lifecycle.state import State


class Poller(ReadinessLoop):
    """The main thread's loop: knows who is ready, and has others serve them."""

    def __init__(self, lifecycle: State) -> None:
        super().__init__()
        self.lifecycle = lifecycle
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

    def __init__(self, poller: Poller, connection: Drivable) -> None:
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
