"""Flows: code that waits, without knowing how the waiting is done.

A flow is a generator. Where it would block, it yields what it waits for; a concurrency model
carries that out in its own way (blocks the thread, parks the greenlet, asks an event loop) and
resumes the flow. So a conversation is written once, and every model runs it.

A flow is resumed with ``None`` when what it waited for has come, and with ``True`` when it has not:
its time has passed, or the flow was woken. (A `Sleep` waits for time to pass, so it is resumed
with ``None``.) The simplest driver, for one flow that is never woken, is::

    expired = None
    while True:  # until StopIteration
        wait = flow.send(expired)
        if isinstance(wait, Sleep):
            time.sleep(wait.seconds)
            expired = None
        elif isinstance(wait, Readable):
            expired = not select([wait.fd], [], [], wait.seconds)[0] or None
        else:
            expired = not select([], [wait.fd], [], wait.seconds)[1] or None

A flow that yields the very same open-ended wait again has nothing new to register.
"""

import socket
from collections.abc import Generator
from typing import Protocol, TypeAlias

_MAX_SLEEP = 1e8  # seconds


class Readable:
    """Wait until `fd` has input, or has reached the end of its stream."""

    __slots__ = ("fd", "seconds")

    def __init__(self, fd: int, seconds: float | None = None) -> None:
        self.fd = fd
        self.seconds = seconds
        """The longest time to wait; None: until input comes, or the flow is woken."""


class Writable:
    """Wait until `fd` has room for output."""

    __slots__ = ("fd", "seconds")

    def __init__(self, fd: int, seconds: float | None) -> None:
        self.fd = fd
        self.seconds = seconds
        """The longest time to wait; None: without limit. Waking the flow does not end this wait."""


class Sleep:
    """Wait for `seconds`, whatever happens; a handler may return it as a step of its answer.

    Raises:
        ValueError: `seconds` is negative, or more than 100 million (about three years).
    """

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        # Raise where the step is made, in the handler, and not where it is carried out.
        if not 0 <= seconds <= _MAX_SLEEP:
            raise ValueError(f"cannot sleep for {seconds!r} seconds")
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"Sleep({self.seconds!r})"


Wait: TypeAlias = Readable | Writable | Sleep

WaitResult: TypeAlias = bool | None
"""What a flow is resumed with: True, where what it waited for has not come."""

Flow: TypeAlias = Generator[Wait, WaitResult, None]


class Driver(Protocol):
    """Runs one flow in the way of its concurrency model."""

    def wake(self) -> None:
        """End an open-ended wait for input; the main flow calls this when it drains."""

    def close(self) -> None:
        """Release what the model holds for the socket, which is about to be closed."""


class Drivable(Protocol):
    """The part of a connection that drivers use."""

    @property
    def sock(self) -> socket.socket:
        """The connection's socket."""

    def driven_by(self, driver: Driver, *, blocking: bool = False, swept: bool = True) -> Flow:
        """Return the flow that serves the connection to its end, for `driver` to run."""

    def wake(self) -> None:
        """End the connection's wait for input."""

    def abort(self) -> None:
        """End the connection, because the drain's time is over."""

    def pulse(self) -> None:
        """Check whether the connection is idle, without a lock: interrupted code may hold it."""
