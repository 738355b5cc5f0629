"""Coroutines made by hand: a readiness loop plus a run queue."""

import select
from collections import deque

from echoserver.drivers.callbacks import MOST_EVENTS, Timer, Timers
from echoserver.flow import Flow, Readable, Wait, WaitResult, Writable


class Coroutine:
    """A generator, what it waits for, and what it will be told when it goes on."""

    __slots__ = ("_scheduler", "expired", "parked", "resume", "timer", "wait")

    def __init__(self, scheduler: "Scheduler") -> None:
        self._scheduler = scheduler
        self.wait: Wait | None = None
        self.parked = True
        """It waits (at first, to be begun); else it runs, or is in the queue of those that will."""
        self.expired: WaitResult = None
        self.timer: Timer | None = None

    def begin(self, flow: Flow) -> None:
        """Queue it for its first step."""
        self.resume = flow.send
        self._scheduler.unpark(self)

    def wake(self) -> None:
        """End an open-ended wait for input."""
        if isinstance(self.wait, Readable) and self.wait.seconds is None:
            self._scheduler.unpark(self, expired=True)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._scheduler.await_next(self, None)


class Scheduler:
    """Runs coroutines in turn: each until it waits."""

    def __init__(self) -> None:
        self._ready: deque[Coroutine] = deque()
        self._waiting: dict[int, Coroutine] = {}  # by descriptor
        self._epoll = select.epoll()
        self._timers = Timers()

    def run(self, until: Coroutine) -> None:
        """Run everyone, until the coroutine `until` has ended."""
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
                if wait is not coroutine.wait:  # mostly it is, and so is registered already
                    self.await_next(coroutine, wait)
                coroutine.parked = True
            idle = self._timers.run_due()  # which may well make someone ready
            for fd, _ in poll(0 if ready else idle, MOST_EVENTS):
                coroutine = waiting[fd]
                if coroutine.parked:
                    coroutine.parked = False
                    ready.append(coroutine)

    def unpark(self, coroutine: Coroutine, expired: WaitResult = None) -> None:
        """Queue it, if it waits."""
        if coroutine.parked:
            coroutine.parked = False
            coroutine.expired = expired
            self._ready.append(coroutine)

    def await_next(self, coroutine: Coroutine, wait: Wait | None) -> None:
        """Note that it waits for something else than before; None: for nothing."""
        before, coroutine.wait = coroutine.wait, wait
        if coroutine.timer is not None:
            coroutine.timer.cancel()
            coroutine.timer = None
        if isinstance(before, Readable | Writable):
            del self._waiting[before.fd]
            self._epoll.unregister(before.fd)
        if isinstance(wait, Readable | Writable):
            self._waiting[wait.fd] = coroutine
            events = select.EPOLLIN if isinstance(wait, Readable) else select.EPOLLOUT
            self._epoll.register(wait.fd, events)
        if wait is not None and wait.seconds is not None:
            expired = True if isinstance(wait, Readable | Writable) else None
            coroutine.timer = self._timers.call_later(
                wait.seconds, lambda: self.unpark(coroutine, expired)
            )
