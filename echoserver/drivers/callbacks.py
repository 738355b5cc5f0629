"""Running flows on an event loop that calls back.

A `Task` registers what its flow waits for, and is called when that has come. It uses only a part of
asyncio's interface, so asyncio's loop, uvloop's and the small ones of this project can all run it.
"""

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any, Protocol

from echoserver.flow import Drivable, Flow, Readable, Wait, Writable


class Timer(Protocol):
    """The handle of a call that is due later, as `EventLoop.call_later` returns it."""

    def cancel(self) -> None:
        """Cancel the call."""


class EventLoop(Protocol):
    """The part of ``asyncio.AbstractEventLoop`` that tasks need, as documented there."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> Any:
        """Call `callback` whenever `fd` is readable."""

    def remove_reader(self, fd: int, /) -> Any:
        """Do not call when `fd` is readable any more."""

    def add_writer(self, fd: int, callback: Callable[[], None], /) -> Any:
        """Call `callback` whenever `fd` is writable."""

    def remove_writer(self, fd: int, /) -> Any:
        """Do not call when `fd` is writable any more."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        """Call `callback` once, in `delay` seconds."""


# Events that a loop of this project handles in one turn, so that timers are not delayed for long.
MAX_EVENTS = 1024


def _nothing() -> None: ...


# Cancelled timers that are kept before they are removed.
_MAX_CANCELLED = 64


class Task:
    """Runs one flow.

    A flow mostly waits for the same thing again: then nothing is registered again, and a message
    costs one callback.
    """

    __slots__ = ("_flow", "_loop", "_next", "_on_end", "_timer", "_wait")

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._wait: Wait | None = None
        self._timer: Timer | None = None
        self._on_end: Callable[[], object] = _nothing

    def run(self, flow: Flow, on_end: Callable[[], object] = _nothing) -> None:
        """Begin the flow; call `on_end` at its end."""
        self._flow = flow
        self._next = flow.__next__
        self._on_end = on_end
        self.resume()

    def resume(self) -> None:
        """Resume the flow, because what it waits for has come."""
        try:
            wait = self._next()
        except StopIteration:
            self._end()
        else:
            if wait is not self._wait:
                self._await(wait)

    def wake(self) -> None:
        """End an open-ended wait for input, in the loop's next turn."""
        wait = self._wait

        def expire() -> None:
            if self._wait is wait and isinstance(wait, Readable) and wait.seconds is None:
                self._expire()

        self._loop.call_later(0, expire)

    def close(self) -> None:
        """Unregister everything that the flow waits for."""
        self._await(None)

    def _expire(self) -> None:
        """Resume the flow, although what it waits for has not come."""
        self._timer = None
        try:
            wait = self._flow.send(True)
        except StopIteration:
            self._end()
        else:
            if wait is not self._wait:
                self._await(wait)

    def _end(self) -> None:
        self._await(None)
        self._on_end()

    def _await(self, wait: Wait | None) -> None:
        """Register `wait` in the place of the previous wait."""
        loop, previous = self._loop, self._wait
        self._wait = wait
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        match previous:
            case Readable() if not (isinstance(wait, Readable) and wait.fd == previous.fd):
                loop.remove_reader(previous.fd)
            case Writable():
                loop.remove_writer(previous.fd)
        match wait:
            case None:
                return
            case Readable() if not (isinstance(previous, Readable) and wait.fd == previous.fd):
                loop.add_reader(wait.fd, self.resume)
            case Writable():
                loop.add_writer(wait.fd, self.resume)
        if wait.seconds is not None:
            can_expire = isinstance(wait, Readable | Writable)
            self._timer = loop.call_later(wait.seconds, self._expire if can_expire else self.resume)


def start(loop: EventLoop, connection: Drivable) -> None:
    """Serve a connection on `loop`."""
    task = Task(loop)
    task.run(connection.driven_by(task))


class Timers:
    """Calls that are due later, for the loops of this project."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Call]] = []
        self._count = itertools.count()
        self.cancelled = 0
        """Calls in the heap that will not be made."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> "_Call":
        """Call `callback` once, in `delay` seconds."""
        if self.cancelled > _MAX_CANCELLED and self.cancelled * 2 > len(self._heap):
            # In place, because a call that `run_due` makes may call this.
            self._heap[:] = [entry for entry in self._heap if not entry[2].cancelled]
            heapq.heapify(self._heap)
            self.cancelled = 0
        call = _Call(self, callback)
        heapq.heappush(self._heap, (time.monotonic() + delay, next(self._count), call))
        return call

    def run_due(self) -> float | None:
        """Make the calls that are due; return the seconds until the next one, None: no more."""
        heap = self._heap
        now = time.monotonic()
        while heap and (heap[0][0] <= now or heap[0][2].cancelled):
            heapq.heappop(heap)[2].run()
        return max(0.0, heap[0][0] - time.monotonic()) if heap else None


class _Call:
    __slots__ = ("_callback", "_timers", "cancelled")

    def __init__(self, timers: Timers, callback: Callable[[], None]) -> None:
        self._timers = timers
        self._callback: Callable[[], None] | None = callback
        self.cancelled = False

    def cancel(self) -> None:
        if self._callback is not None:
            self._callback = None
            self.cancelled = True
            self._timers.cancelled += 1

    def run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()
        else:
            self._timers.cancelled -= 1
