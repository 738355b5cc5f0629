"""The signals that move the state, and the self-pipe by which they end the main flow's wait."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from types import FrameType
from typing import Any

from echoserver.lifecycle.state import ABORT_SIGNAL, DRAIN_SIGNAL, WAKE_SIGNAL, State

# Seconds within which the main flow must notice a second signal: else the process ends where it is.
_TO_NOTICE = 2.0


def _nothing() -> None:
    """Do nothing when a signal comes."""


class SignalledState(State):
    """A state that signals move; they do nothing else but wake the main flow.

    Args:
        drain_timeout: Seconds that a drain may take; 0: as long as it takes.
    """

    def __init__(self, drain_timeout: float) -> None:
        super().__init__(drain_timeout)

        self.signal = 0
        """The last signal that came, 0 where none did."""

        self._hooks: list[Callable[[], None]] = []
        self._told_to_stop = False
        self._unnoticed_since = inf  # when a second signal came that the main flow has not seen yet
        self._last_acts: list[Callable[[], None]] = []
        self._woken = False
        self._unhandled = False  # by the main thread: a signal that another thread was told of
        self._hung_up = False
        self._restore: list[Callable[[], object]] = []
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # -- state ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin to drain; from any thread, or from a signal handler."""
        super().drain()
        self.wake()

    @property
    def signal_name(self) -> str:
        """What that signal is called; ``none`` where something else began the drain."""
        return signal.Signals(self.signal).name if self.signal else "none"

    # -- the main flow is woken --------------------------------------------------------------

    def on_wake(self, hook: Callable[[], None]) -> None:
        """Call `hook` in the main flow whenever it was woken, by `wake` or by a signal."""
        self._hooks.append(hook)

    def run_hooks(self) -> None:
        """Do what a wake-up asks for; a main flow that is too busy to wait calls this itself."""
        if self._woken:
            self._woken = False
            for hook in self._hooks:
                hook()

    def wake(self) -> None:
        """End the main flow's wait; from any thread, or from a signal handler."""
        self._woken = True
        with suppress(OSError):  # a full pipe wakes as well; a closed one is over
            os.write(self._waker, b"\0")

    # -- signals -------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Take over SIGTERM and SIGINT until `close`; only the main thread may call this."""
        self._take_wakeups()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handle(number, self._on_stop_signal)
        self._handle(WAKE_SIGNAL, self._only_wake)
        self._handle(signal.SIGALRM, self._on_alarm)

    def install_workers_signals(self, beat: Callable[[], None], alone: Callable[[], bool]) -> None:
        """Take over the signals that a master sends to a worker; the terminal's are its business.

        Args:
            beat: Called, in the main thread, for every `WAKE_SIGNAL`.
            alone: Tells whether a SIGTERM is for this worker alone, so that others take over.
        """

        def on_term(number: int, _frame: FrameType | None) -> None:
            # The first or not, for others than the master may send it, too.
            self.signal = number
            self.retiring = alone()
            self.drain()
            self.interrupt()

        def on_nudge(_number: int, _frame: FrameType | None) -> None:
            self._unhandled = False
            beat()
            self.pulse()
            self.wake()

        self._take_wakeups()
        self._handle(signal.SIGTERM, on_term)
        self._handle(DRAIN_SIGNAL, self._on_retire)
        self._handle(ABORT_SIGNAL, self._on_leave)
        self._handle(WAKE_SIGNAL, on_nudge)
        self._handle(signal.SIGALRM, self._on_alarm)
        for number in (signal.SIGINT, signal.SIGHUP):
            self._handle(number, signal.SIG_IGN)

    def wake_on(self, number: signal.Signals, call: Callable[[], None] = _nothing) -> None:
        """Let signal `number` end the wait, and `call` something."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            call()
            self.wake()

        self._handle(number, on_signal)

    def _on_leave(self, _number: int, _frame: FrameType | None) -> None:
        self.kill()
        self.drain()
        self.interrupt()

    def on_hangup(self, hook: Callable[[], None]) -> None:
        """Call `hook` in the main flow after a SIGHUP, unless it drains.

        Until now, one has ended the process.
        """

        def note() -> None:
            self._hung_up = True

        def reload() -> None:
            if self._hung_up:
                self._hung_up = False
                if self.running:
                    hook()

        self.on_wake(reload)
        self.wake_on(signal.SIGHUP, note)

    def _take_wakeups(self) -> None:
        previous = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._restore.append(lambda: signal.set_wakeup_fd(previous))

    def _handle(self, number: int, handler: Any) -> None:
        previous = signal.signal(number, handler)
        self._restore.append(lambda: signal.signal(number, previous or signal.SIG_DFL))

    def _on_retire(self, _number: int, _frame: FrameType | None) -> None:
        self.retiring = True
        self.drain()
        self.interrupt()

    def _on_stop_signal(self, number: int, _frame: FrameType | None) -> None:
        # A second one may come while this function is still at work on the first.
        again = self._told_to_stop or not self.running
        self._told_to_stop = True
        self.signal = number
        if again:
            self._unnoticed_since = min(self._unnoticed_since, time.monotonic())
            self.kill()
            self.wake()
            self.interrupt(again=True)
            self._await_main_flow()
        else:
            self.drain()
            self.interrupt()

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupt()
        if self.killed:
            self._await_main_flow()

    def on_forced_end(self, act: Callable[[], None]) -> None:
        """Call `act`, in a signal handler, before the process ends without its main flow.

        That is where a second signal finds a main flow that does not come back: from a plugin's
        import, or from a handler. What was called first is called last.
        """
        self._last_acts.append(act)

    def _await_main_flow(self) -> None:
        """After a second signal: end the process if its main flow does not notice it in time."""
        left = self._unnoticed_since + _TO_NOTICE - time.monotonic()
        if left <= 0:
            for act in reversed(self._last_acts):
                with suppress(Exception):
                    act()
            os._exit(128 + self.signal)
        elif left < inf and self._attached is None:  # whose timer comes more often
            signal.setitimer(signal.ITIMER_REAL, left)

    def _only_wake(self, _number: int, _frame: FrameType | None) -> None:
        self._unhandled = False
        self.wake()

    def restore_signals(self) -> None:
        """Restore the signal handlers that were installed before."""
        if self.killed:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or it would end the process: its default
        for restore in reversed(self._restore):
            restore()
