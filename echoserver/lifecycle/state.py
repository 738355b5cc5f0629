"""RUNNING → DRAINING → KILLED: whether a process goes on serving, and by when it must have ended.

Signals move this state, and otherwise only end a wait. It has a module of its own because a process
that serves one client, and waits for nothing else, needs no more than this.
"""

import signal
import sys
import time
from enum import Enum, auto
from math import inf
from typing import Any, Protocol

# Interrupts a system call of another thread, and has no other meaning. It is ignored by default, so
# one that arrives before the handler is installed does no harm.
WAKE_SIGNAL = signal.SIGURG

# From a master to a worker: drain, because another worker takes over.
DRAIN_SIGNAL = signal.SIGUSR1

# From a master to a worker: end at once. (A second SIGTERM may be merged with the first: standard
# signals do not queue, signal(7).)
ABORT_SIGNAL = signal.SIGUSR2

# A stream that never pauses is ended after this many seconds of drain, or after a quarter of the
# drain's time where that is less, so that it is over well before the deadline.
_STREAM_GRACE = 2.0
_STREAM_SHARE = 0.25

_FIRST_RETRY_DELAY = 0.05  # seconds between two interruptions of a connection that drains


class MainThreadConnection(Protocol):
    """A connection that is served in the thread that handles signals."""

    def wake(self) -> None:
        """End the connection's wait for input."""

    def abort(self) -> None:
        """End the connection, because the drain's time is over."""

    def pulse(self) -> None:
        """Check whether the connection is idle, without a lock: interrupted code may hold it."""


class Phase(Enum):
    """How far the end of a process has come."""

    RUNNING = auto()
    """The process accepts clients, or answers its one client."""
    DRAINING = auto()
    """The process answers what it has read, and ends."""
    KILLED = auto()
    """The process ends at once."""


class State:
    """How far the end of a process has come, and by when it must have ended.

    Args:
        drain_timeout: Seconds that a drain may take; 0: as long as it takes.
    """

    def __init__(self, drain_timeout: float) -> None:
        self.phase = Phase.RUNNING
        """How far the end of the process has come."""

        self.running: bool = True
        """Whether no drain has begun; a plain attribute, as flows read it before every read."""

        self.retiring = False
        """Whether the drain is for another process that takes over the listener."""

        self.stream_deadline = inf
        """When to end connections even if their input never pauses (``monotonic``)."""

        self.deadline = inf
        """When the drain gives up on output that is still owed (``monotonic``)."""

        self.drain_timeout = drain_timeout
        """Seconds that a drain may take; 0: as long as it takes."""

        self._main_connection: MainThreadConnection | None = None
        self._retry_delay = _FIRST_RETRY_DELAY

    def begin_drain(self) -> None:
        """Begin to drain; from any thread, or from a signal handler.

        A later call sets the deadline if there was none, as `drain_timeout` may have changed.
        """
        timeout = self.drain_timeout or inf
        now = time.monotonic()
        if self.running:
            self.stream_deadline = now + min(_STREAM_GRACE, timeout * _STREAM_SHARE)
        if self.running or self.deadline == inf:
            self.deadline = now + timeout
        self.running = False
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING

    def kill(self) -> None:
        """End at once, because a second signal came; `begin_drain` must be called, too."""
        self.phase = Phase.KILLED

    @property
    def killed(self) -> bool:
        """Whether to end at once, because a second signal came."""
        return self.phase is Phase.KILLED

    @property
    def overdue(self) -> bool:
        """Whether the drain's time is over."""
        return time.monotonic() >= self.deadline

    def attach(self, connection: MainThreadConnection) -> None:
        """Let signals end the waits of a connection that the main thread serves.

        A forked child uses this, and a server of one client at a time.
        """
        self._main_connection = connection
        self._retry_delay = _FIRST_RETRY_DELAY
        self.interrupt()

    def detach(self) -> None:
        """Detach the connection: it is over, so signals have no wait to end."""
        self._main_connection = None
        if not self.running:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def interrupt(self, *, again: bool = False) -> None:
        """End the wait of the connection that the main thread itself serves, if it serves one.

        Signal handlers call this, in a server of one client at a time or a forked child.

        A signal that arrives between the flow's last check of `running` and its system call ends
        no wait. So the connection is interrupted repeatedly.

        Args:
            again: There is a new reason, so the repetitions begin with a short delay again.
        """
        if again:
            self._retry_delay = _FIRST_RETRY_DELAY
        connection = self._main_connection
        if connection is None or self.running:
            return
        if self.killed or self.overdue:
            connection.abort()
        else:
            connection.wake()
        # The delay grows, because every interruption restarts a write timeout; but it does not go
        # beyond the deadline.
        remaining = self.deadline - time.monotonic()
        signal.setitimer(
            signal.ITIMER_REAL, min(self._retry_delay, max(remaining, _FIRST_RETRY_DELAY))
        )
        self._retry_delay *= 2

    def pulse(self) -> None:
        """Check the main thread's connection for idleness, on a master's heartbeat signal."""
        if self._main_connection is not None:
            self._main_connection.pulse()


def in_main_thread() -> bool:
    """Tell whether signals can be handled and children forked from here."""
    threading = sys.modules.get("threading")  # until it is imported, there is one thread
    return threading is None or threading.get_ident() == threading.main_thread().ident


def remaining_threads() -> set[Any]:
    """Return the threads, besides the main one, for which the interpreter waits at its end."""
    threading = sys.modules.get("threading")
    if threading is None:
        return set()
    main = threading.main_thread()
    return {one for one in threading.enumerate() if not (one.daemon or one is main)}
