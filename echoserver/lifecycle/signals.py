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

# Seconds within which the main flow must notice a second signal, or the process is ended at once.
_NOTICE_TIMEOUT = 2.0


def _nothing() -> None:
    """Do nothing when a signal comes."""


class SignalledState(State):
    """A state that signals move; apart from that, they only wake the main flow.

    Args:
        drain_timeout: Seconds that a drain may take; 0: as long as it takes.
    """

    def __init__(self, drain_timeout: float) -> None:
        super().__init__(drain_timeout)

        self.signal = 0
        """The last stop signal that came; 0: none."""

        self._hooks: list[Callable[[], None]] = []
        self._has_stop_signal = False
        self._second_signal_time = inf  # of one that the main flow has not noticed yet
        self._forced_end_hooks: list[Callable[[], None]] = []
        self._wake_pending = False
        self._signal_pending = False  # another thread got it; the main thread has to handle it
        self._reload_pending = False
        self._restore: list[Callable[[], object]] = []
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # -- state ---------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Begin to drain; from any thread, or from a signal handler."""
        super().begin_drain()
        self.wake()

    @property
    def signal_name(self) -> str:
        """The name of the last stop signal; ``none`` if something else began the drain."""
        return signal.Signals(self.signal).name if self.signal else "none"

    # -- waking the main flow ----------------------------------------------------------------

    def on_wake(self, hook: Callable[[], None]) -> None:
        """Call `hook` in the main flow whenever it was woken, by `wake` or by a signal."""
        self._hooks.append(hook)

    def run_hooks(self) -> None:
        """Call the hooks after a wake-up; a main flow too busy to wait calls this itself."""
        if self._wake_pending:
            self._wake_pending = False
            for hook in self._hooks:
                hook()

    def wake(self) -> None:
        """End the main flow's wait; from any thread, or from a signal handler."""
        self._wake_pending = True
        with suppress(OSError):  # a full pipe wakes as well; a closed one needs no wake-up
            os.write(self._wake_writer, b"\0")

    # -- signals -------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Take over SIGTERM and SIGINT until `close`; only the main thread may call this."""
        self._install_wakeup_fd()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handle(number, self._on_stop_signal)
        self._handle(WAKE_SIGNAL, self._only_wake)
        self._handle(signal.SIGALRM, self._on_alarm)

    def install_workers_signals(
        self, heartbeat: Callable[[], None], is_for_this_worker: Callable[[], bool]
    ) -> None:
        """Take over the signals that a master sends to a worker, and ignore the terminal's.

        Args:
            heartbeat: Called, in the main thread, for every `WAKE_SIGNAL`.
            is_for_this_worker: Tells whether a SIGTERM is for this worker alone, so that another
                worker takes over.
        """

        def on_term(number: int, _frame: FrameType | None) -> None:
            # Even if it is not the first one, because others than the master may send it, too.
            self.signal = number
            self.retiring = is_for_this_worker()
            self.begin_drain()
            self.interrupt()

        def on_wake_signal(_number: int, _frame: FrameType | None) -> None:
            self._signal_pending = False
            heartbeat()
            self.pulse()
            self.wake()

        self._install_wakeup_fd()
        self._handle(signal.SIGTERM, on_term)
        self._handle(DRAIN_SIGNAL, self._on_drain_signal)
        self._handle(ABORT_SIGNAL, self._on_abort_signal)
        self._handle(WAKE_SIGNAL, on_wake_signal)
        self._handle(signal.SIGALRM, self._on_alarm)
        for number in (signal.SIGINT, signal.SIGHUP):
            self._handle(number, signal.SIG_IGN)

    def wake_on(self, number: signal.Signals, call: Callable[[], None] = _nothing) -> None:
        """Let signal `number` end the wait, and call `call`."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            call()
            self.wake()

        self._handle(number, on_signal)

    def _on_abort_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.kill()
        self.begin_drain()
        self.interrupt()

    def on_hangup(self, hook: Callable[[], None]) -> None:
        """Call `hook` in the main flow after a SIGHUP, unless it drains.

        Before this call, a SIGHUP ends the process.
        """

        def request_reload() -> None:
            self._reload_pending = True

        def reload() -> None:
            if self._reload_pending:
                self._reload_pending = False
                if self.running:
                    hook()

        self.on_wake(reload)
        self.wake_on(signal.SIGHUP, request_reload)

    def _install_wakeup_fd(self) -> None:
        previous = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        self._restore.append(lambda: signal.set_wakeup_fd(previous))

    def _handle(self, number: int, handler: Any) -> None:
        previous = signal.signal(number, handler)
        self._restore.append(lambda: signal.signal(number, previous or signal.SIG_DFL))

    def _on_drain_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.retiring = True
        self.begin_drain()
        self.interrupt()

    def _on_stop_signal(self, number: int, _frame: FrameType | None) -> None:
        # A second signal may come while this function still handles the first one.
        is_second = self._has_stop_signal or not self.running
        self._has_stop_signal = True
        self.signal = number
        if is_second:
            self._second_signal_time = min(self._second_signal_time, time.monotonic())
            self.kill()
            self.wake()
            self.interrupt(again=True)
            self._await_main_flow()
        else:
            self.begin_drain()
            self.interrupt()

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupt()
        if self.killed:
            self._await_main_flow()

    def on_forced_end(self, hook: Callable[[], None]) -> None:
        """Call `hook`, in a signal handler, before the process ends without its main flow.

        That happens after a second signal, when the main flow does not return from a plugin's
        import or from a handler. The hooks are called in reverse order.
        """
        self._forced_end_hooks.append(hook)

    def _await_main_flow(self) -> None:
        """End the process if its main flow has not noticed a second signal in time."""
        remaining = self._second_signal_time + _NOTICE_TIMEOUT - time.monotonic()
        if remaining <= 0:
            # Another signal may interrupt the hooks; its handler is to find nothing to do.
            self._second_signal_time = inf
            for hook in reversed(self._forced_end_hooks):
                with suppress(Exception):
                    hook()
            os._exit(128 + self.signal)
        elif remaining < inf and self._main_connection is None:  # its own timer fires more often
            signal.setitimer(signal.ITIMER_REAL, remaining)

    def _only_wake(self, _number: int, _frame: FrameType | None) -> None:
        self._signal_pending = False
        self.wake()

    def restore_signals(self) -> None:
        """Restore the signal handlers that were installed before."""
        if self.killed:
            signal.setitimer(signal.ITIMER_REAL, 0)  # by default, the alarm would end the process
        for restore in reversed(self._restore):
            restore()
