"""RUNNING → DRAINING → KILLED, and the one place where the main flow of a server waits.

A signal does nothing but move the state and wake that wait. The wake-up is a byte in a pipe (the
self-pipe trick), because a signal, a slot that came free in another thread and a readable
listener must all end the same ``poll``.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from types import FrameType
from typing import Any

from echoserver.config import Config

# Interrupts a system call of another thread and means nothing else. Its default is to be ignored,
# so one that arrives before the handler is installed does no harm.
NUDGE = signal.SIGURG

# A stream that never pauses is ended after this many seconds of drain, or after a quarter of the
# drain's time where that is less, so that it is over well before the deadline.
STREAM_PATIENCE = 2.0
_STREAM_SHARE = 0.25

_FIRST_NAG = 0.05  # seconds between two interruptions of a driver that drains

_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Lifecycle:
    """The state of one server.

    Args:
        config: Says how long a drain may take, and which lifeline to watch.
        poll: ``select.poll``, or what a concurrency model waits with instead.
    """

    def __init__(self, config: Config, poll: Callable[[], Any] = select.poll) -> None:
        self.running: bool = True
        """Until the first signal. Drivers read it before every read of theirs."""

        self.killed = False
        """A second signal came: leave at once."""

        self.signal = 0
        """The last signal that came, 0 where none did."""

        self.drain_started = inf
        """When the drain began (``time.monotonic``)."""

        self.stream_deadline = inf
        """When a connection whose input never pauses is ended all the same."""

        self.deadline = inf
        """When the drain gives up on what is still owed."""

        self._config = config
        self._interrupt: Callable[[], None] = _nothing
        self._hooks: list[Callable[[], None]] = []
        self._restore: list[Callable[[], object]] = []
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = poll()
        self.watch(self._wakeup)
        self._lifeline = config.lifeline
        if self._lifeline is not None:
            self.watch(self._lifeline)

    # -- state ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin to drain; from any thread, or from a signal handler."""
        if self.running:
            timeout = self._config.drain_timeout or inf
            self.drain_started = time.monotonic()
            self.stream_deadline = self.drain_started + min(
                STREAM_PATIENCE, timeout * _STREAM_SHARE
            )
            self.deadline = self.drain_started + timeout
            self.running = False
        self.wake()

    @property
    def signal_name(self) -> str:
        """What that signal is called; ``none`` where something else began the drain."""
        return signal.Signals(self.signal).name if self.signal else "none"

    @property
    def overdue(self) -> bool:
        """The drain's time is over."""
        return time.monotonic() >= self.deadline

    # -- signals -------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Take over SIGTERM and SIGINT until `close`; only the main thread may call this."""
        previous = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._restore.append(lambda: signal.set_wakeup_fd(previous))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handle(number, self._on_stop_signal)
        self._handle(NUDGE, _only_wake)

    def wake_on(self, number: signal.Signals) -> None:
        """Let signal `number` end the wait, and mean nothing else."""
        self._handle(number, _only_wake)

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        previous = signal.signal(number, handler)
        self._restore.append(lambda: signal.signal(number, previous or signal.SIG_DFL))

    def _on_stop_signal(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        if self.running:
            self.drain()
        else:
            self.killed = True
        self._interrupt()

    # -- waiting -------------------------------------------------------------------------------

    def watch(self, fd: int) -> None:
        """Let `fd` end the wait when it is readable."""
        self._poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """Undo `watch`."""
        self._poll.unregister(fd)

    def on_wake(self, hook: Callable[[], None]) -> None:
        """Call `hook` in the main flow whenever a wait was ended by `wake` or by a signal."""
        self._hooks.append(hook)

    def run_hooks(self) -> None:
        """Do what a wake-up does; for a main flow that is too busy to wait."""
        for hook in self._hooks:
            hook()

    def wake(self) -> None:
        """End the main flow's wait; from any thread, or from a signal handler."""
        with suppress(BlockingIOError, OSError):  # a full pipe wakes as well; a closed one is over
            os.write(self._waker, b"\0")

    def wait(self, timeout: float | None = None) -> set[int]:
        """Wait for a watched descriptor, a wake-up, or `timeout` seconds; return what is readable.

        Only the main flow of the backend may wait here.
        """
        milliseconds = None if timeout is None else max(0, int(timeout * 1000) + 1)
        ready = {fd for fd, events in self._poll.poll(milliseconds) if events & _READABLE}
        if self._wakeup in ready:
            with suppress(BlockingIOError):
                os.read(self._wakeup, 65536)
            self.run_hooks()
        if self._lifeline in ready and self._lifeline is not None:
            self.forget(self._lifeline)
            self._lifeline = None
            self.drain()
        return ready

    def close(self) -> None:
        """Give the signals back and close the descriptors."""
        for restore in reversed(self._restore):
            restore()
        self._close_pipe()

    def _close_pipe(self) -> None:
        os.close(self._wakeup)
        os.close(self._waker)
        self._wakeup = self._waker = -1

    # -- serving in the thread that handles signals ----------------------------------------------

    @contextmanager
    def interrupting(self, wake: Callable[[], None], cut: Callable[[], None]) -> Iterator[None]:
        """While the block runs, let signals end the waits of a connection that is served in it.

        For whoever serves in the main thread: a forked child, or a server of one client at a
        time. A signal that arrives after the driver's last look at `running`, and before its
        system call begins, ends no wait. So the driver is interrupted again and again.

        Args:
            wake: Ends a wait for input.
            cut: Ends a wait for output, once the drain is overdue.
        """
        pause = _FIRST_NAG

        def interrupt(*_: object) -> None:
            nonlocal pause
            if not self.running:
                (cut if self.killed or self.overdue else wake)()
                # Later each time, for every interruption begins a write timeout anew; but not
                # later than the deadline.
                left = self.deadline - time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, min(pause, max(left, _FIRST_NAG)))
                pause *= 2

        previous = signal.signal(signal.SIGALRM, interrupt)
        self._interrupt = interrupt
        try:
            if not self.running:
                interrupt()
            yield
        finally:
            self._interrupt = _nothing
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous or signal.SIG_DFL)

    def become_child(self) -> None:
        """In a forked child: leave the parent's signals and descriptors alone.

        SIGTERM drains; Ctrl-C, which reaches the whole group, means what the parent decides.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, self._on_parents_signal)
        # Forked while the parent drained, it may have taken the parent's word, which came before
        # the line above, for a second signal.
        self.killed = False
        self._close_pipe()
        if self._lifeline is not None:
            os.close(self._lifeline)

    def _on_parents_signal(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number  # a second one means no more than the first: the parent decides
        self.drain()
        self._interrupt()


def _nothing() -> None:
    """Interrupt nobody."""


def _only_wake(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal whose only purpose is to interrupt."""


def in_main_thread() -> bool:
    """Tell whether signals can be handled and children forked from here."""
    return threading.current_thread() is threading.main_thread()
