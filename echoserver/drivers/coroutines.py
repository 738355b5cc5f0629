"""Coroutines made by hand: a readiness loop plus a run queue."""

import select
from collections import deque

from echoserver.drivers.callbacks import MAX_EVENTS, Timer, Timers
from echoserver.flow import Flow, Readable, Wait, WaitResult, Writable


class Coroutine:
    """A generator, what it waits for, and the result with which it will be resumed."""

    __slots__ = ("_scheduler", "expired", "is_waiting", "resume", "timer", "wait")

    def __init__(self, scheduler: "Scheduler") -> None:
        self._scheduler = scheduler
        self.wait: Wait | None = None
        self.is_waiting = True
        """Whether it waits (at first, for `begin`); otherwise it runs, or is in the run queue."""
        self.expired: WaitResult = None
        self.timer: Timer | None = None

    def begin(self, flow: Flow) -> None:
        """Put the coroutine into the run queue, for its first step."""
        self.resume = flow.send
        self._scheduler.unpark(self)

    def wake(self) -> None:
        """End an open-ended wait for input."""
        if isinstance(self.wait, Readable) and self.wait.seconds is None:
            self._scheduler.unpark(self, expired=True)

    def close(self) -> None:
        """Cancel what the coroutine waits for."""
        self._scheduler.await_next(self, None)


class Scheduler:
    """Runs coroutines in turn: each until it waits."""

    def __init__(self) -> None:
        self._ready: deque[Coroutine] = deque()
        self._waiting: dict[int, Coroutine] = {}  # by descriptor
        self._epoll = select.epoll()
        self._timers = Timers()

    def run(self, until: Coroutine) -> None:
        """Run all coroutines, until the coroutine `until` has ended."""
        ready, waiting, poll = self._ready, self._waiting, self._epoll.poll
        while True:
            while ready:
                coroutine = ready.popleft()
                expired, coroutine.expired = coroutine.expired, None
                try:
                    wait = coroutine.resume(expired)
                except StopIteration:
                    self.await_next(coroutine, None)
                    if coroutine is until:
                        return
                    continue
                if wait is not coroutine.wait:  # mostly it is the same, and is registered already
                    self.await_next(coroutine, wait)
                coroutine.is_waiting = True
            idle = self._timers.run_due()  # which may make a coroutine ready
            for fd, _ in poll(0 if ready else idle, MAX_EVENTS):
                coroutine = waiting[fd]
                if coroutine.is_waiting:
                    coroutine.is_waiting = False
                    ready.append(coroutine)

    def unpark(self, coroutine: Coroutine, expired: WaitResult = None) -> None:
        """Put a coroutine into the run queue, if it waits."""
        if coroutine.is_waiting:
            coroutine.is_waiting = False
            coroutine.expired = expired
            self._ready.append(coroutine)

    def await_next(self, coroutine: Coroutine, wait: Wait | None) -> None:
        """Register what a coroutine waits for, in the place of its previous wait; None: nothing."""
        previous, coroutine.wait = coroutine.wait, wait
        if coroutine.timer is not None:
            coroutine.timer.cancel()
            coroutine.timer = None
        if isinstance(previous, Readable | Writable):
            del self._waiting[previous.fd]
            self._epoll.unregister(previous.fd)
        if isinstance(wait, Readable | Writable):
            self._waiting[wait.fd] = coroutine
            events = select.EPOLLIN if isinstance(wait, Readable) else select.EPOLLOUT
            self._epoll.register(wait.fd, events)
        if wait is not None and wait.seconds is not None:
            expired = True if isinstance(wait, Readable | Writable) else None
            coroutine.timer = self._timers.call_later(
                wait.seconds, lambda: self.unpark(coroutine, expired)
            )
