"""RUNNING → DRAINING → KILLED: whether a process goes on serving, and by when it must have ended.

Signals move this state, and do nothing else but end a wait. It stands by itself because a process
that serves one client, and waits for nothing else, needs no more than this.
"""

import signal
import sys
import time
from enum import Enum, auto
from math import inf
from typing import Any, Protocol

# Interrupts a system call of another thread and means nothing else. Its default is to be ignored,
# so one that arrives before the handler is installed does no harm.
WAKE_SIGNAL = signal.SIGURG

# From a master to a worker: drain, for another one takes over.
DRAIN_SIGNAL = signal.SIGUSR1

# From a master to a worker: leave at once. (A second SIGTERM may be merged with the first: standard
# signals do not queue, signal(7).)
ABORT_SIGNAL = signal.SIGUSR2

# A stream that never pauses is ended after this many seconds of drain, or after a quarter of the
# drain's time where that is less, so that it is over well before the deadline.
_STREAM_PATIENCE = 2.0
_STREAM_SHARE = 0.25

_FIRST_RETRY_DELAY = 0.05  # seconds between two interruptions of a connection that drains


class MainThreadConnection(Protocol):
    """A connection that is served in the thread that handles signals."""

    def wake(self) -> None:
        """End its wait for input."""

    def abort(self) -> None:
        """End it: the drain's time is over."""

    def pulse(self) -> None:
        """Look whether it is idle, and take no lock: what a signal interrupts may hold it."""


class Phase(Enum):
    """How far the end of a process has come."""

    RUNNING = auto()
    """It accepts clients, or answers its one client."""
    DRAINING = auto()
    """It answers what it has read, and ends."""
    KILLED = auto()
    """It leaves at once."""


class State:
    """How far the end has come.

    Args:
        drain_timeout: Seconds that a drain may take; 0: as long as it takes.
    """

    def __init__(self, drain_timeout: float) -> None:
        self.phase = Phase.RUNNING
        """How far the end has come."""

        self.running: bool = True
        """Not drained yet. A plain attribute: a connection's flow looks at it before every read."""

        self.retiring = False
        """Draining because another process takes over, which accepts from the same listener."""

        self.stream_deadline = inf
        """When a connection whose input never pauses is ended all the same (``monotonic``)."""

        self.deadline = inf
        """When the drain gives up on what is still owed."""

        self.drain_timeout = drain_timeout
        """How long a drain may take."""

        self._attached: MainThreadConnection | None = None
        self._pause = _FIRST_RETRY_DELAY

    def drain(self) -> None:
        """Begin to drain; from any thread, or from a signal handler.

        Again, for one that had no deadline: now there may be one.
        """
        timeout = self.drain_timeout or inf
        now = time.monotonic()
        if self.running:
            self.stream_deadline = now + min(_STREAM_PATIENCE, timeout * _STREAM_SHARE)
        if self.running or self.deadline == inf:
            self.deadline = now + timeout
        self.running = False
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING

    def kill(self) -> None:
        """A second signal came: leave at once, after `drain` has been called."""
        self.phase = Phase.KILLED

    @property
    def killed(self) -> bool:
        """A second signal came."""
        return self.phase is Phase.KILLED

    @property
    def overdue(self) -> bool:
        """The drain's time is over."""
        return time.monotonic() >= self.deadline

    def attach(self, connection: MainThreadConnection) -> None:
        """Let signals end the waits of a connection that is served in this, the main, thread.

        For a forked child, or a server of one client at a time.
        """
        self._attached = connection
        self._pause = _FIRST_RETRY_DELAY
        self.interrupt()

    def detach(self) -> None:
        """It is over; signals find nobody."""
        self._attached = None
        if not self.running:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def interrupt(self, *, again: bool = False) -> None:
        """End the wait of the connection that is to come to its end; for handlers of signals.

        A signal that arrives after its flow's last look at `running`, and before a system call
        begins, ends no wait. So it is interrupted again and again.

        Args:
            again: There is a new reason, so the first repetitions follow soon.
        """
        if again:
            self._pause = _FIRST_RETRY_DELAY
        connection = self._attached
        if connection is None or self.running:
            return
        if self.killed or self.overdue:
            connection.abort()
        else:
            connection.wake()
        # Later each time, for every interruption restarts a write timeout; but not later than
        # the deadline.
        left = self.deadline - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, min(self._pause, max(left, _FIRST_RETRY_DELAY)))
        self._pause *= 2

    def pulse(self) -> None:
        """A master asks whether the process lives: look after the connection, too."""
        if self._attached is not None:
            self._attached.pulse()


def in_main_thread() -> bool:
    """Tell whether signals can be handled and children forked from here."""
    threading = sys.modules.get("threading")  # until someone imports it, there is one thread
    return threading is None or threading.get_ident() == threading.main_thread().ident


def remaining_threads() -> set[Any]:
    """Return the threads, besides the main one, for which the interpreter waits at its end."""
    threading = sys.modules.get("threading")
    if threading is None:
        return set()
    main = threading.main_thread()
    return {one for one in threading.enumerate() if not (one.daemon or one is main)}
