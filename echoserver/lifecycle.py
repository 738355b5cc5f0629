"""The one thing that the main flow of a server waits for, and the signals that end that wait.

A signal does nothing but move the state and wake that wait. The wake-up is a byte in a pipe (the
self-pipe trick), because a signal, a slot that came free in another thread and a readable
listener must all end the same wait: of an epoll descriptor, which is readable when one of those
that it watches is, and so can itself be watched by any event loop (epoll(7)).
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from types import FrameType
from typing import Any

from echoserver.config import Config
from echoserver.flow import Readable, Wait
from echoserver.state import LEAVE, NUDGE, RETIRE, State, in_main_thread

_NO_SIGNALS = {0, NUDGE}
"""What `Lifecycle.wake` and an interruption leave in the pipe, beside the numbers of signals."""

# Seconds within which the main flow must notice a second signal: else the process ends where it is.
_TO_NOTICE = 2.0

# Seconds between two interruptions of a main thread that is to run a signal's handler. One can be
# lost: between Python's last look at what has come and the lock that the thread then waits for.
_NEXT_INTERRUPTION = 0.05


def _nothing() -> None:
    """Call nothing."""


@dataclass(slots=True)
class _Periodic:
    seconds: float
    call: Callable[[], None]
    due: float


class Lifecycle(State):
    """The state of one server, and its main flow's wait.

    Args:
        config: Says how long a drain may take, and which lifeline to watch.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config.drain_timeout)

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
        self._epoll = select.epoll()
        self._ready: set[int] | None = None
        self._calls: dict[int, Callable[[], None]] = {}
        self._periodic: list[_Periodic] = []
        self.watch(self._wakeup, self._on_wakeup)
        self._lifeline = config.lifeline
        if self._lifeline is not None:
            self.watch(self._lifeline, self._on_lifeline)

    # -- state ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin to drain; from any thread, or from a signal handler."""
        super().drain()
        self.wake()

    @property
    def signal_name(self) -> str:
        """What that signal is called; ``none`` where something else began the drain."""
        return signal.Signals(self.signal).name if self.signal else "none"

    # -- signals -------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Take over SIGTERM and SIGINT until `close`; only the main thread may call this."""
        self._take_wakeups()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handle(number, self._on_stop_signal)
        self._handle(NUDGE, self._only_wake)
        self._handle(signal.SIGALRM, self._on_alarm)

    def install_workers_signals(self, beat: Callable[[], None], alone: Callable[[], bool]) -> None:
        """Take over the signals that a master sends to a worker; the terminal's are its business.

        Args:
            beat: Called, in the main thread, for every `NUDGE`.
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
        self._handle(RETIRE, self._on_retire)
        self._handle(LEAVE, self._on_leave)
        self._handle(NUDGE, on_nudge)
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
        self.killed = True
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
            self.killed = True
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
        elif left < inf and self._guest is None:  # whose timer comes more often
            signal.setitimer(signal.ITIMER_REAL, left)

    def _only_wake(self, _number: int, _frame: FrameType | None) -> None:
        self._unhandled = False
        self.wake()

    # -- waiting -------------------------------------------------------------------------------

    def watch(
        self, fd: int, call: Callable[[], None] | None = None, *, exclusive: bool = False
    ) -> None:
        """Let `fd` end the wait when it is readable.

        Args:
            fd: What to watch.
            call: What to do about it, in the main flow.
            exclusive: Of several processes that watch it, not all need wake up.
        """
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLEXCLUSIVE if exclusive else 0))
        if call is not None:
            self._calls[fd] = call

    def forget(self, fd: int) -> None:
        """Undo `watch`."""
        self._epoll.unregister(fd)
        self._calls.pop(fd, None)

    def on_wake(self, hook: Callable[[], None]) -> None:
        """Call `hook` in the main flow whenever it was woken, by `wake` or by a signal."""
        self._hooks.append(hook)

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something in the main flow again and again, whenever so much time has passed."""
        self._periodic.append(_Periodic(seconds, call, time.monotonic()))

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

    def something(self, seconds: float | None = None) -> Readable:
        """Return what the main flow waits for; after it comes `look`."""
        if self._periodic:
            due = max(0.0, min(one.due for one in self._periodic) - time.monotonic())
            seconds = due if seconds is None else min(seconds, due)
        if self._unhandled:
            seconds = _NEXT_INTERRUPTION if seconds is None else min(seconds, _NEXT_INTERRUPTION)
        return Readable(self._epoll.fileno(), seconds)

    def block(self, wait: Wait) -> None:
        """Carry out a wait of the main flow by blocking this thread."""
        events = self._epoll.poll(wait.seconds)
        self._ready = {fd for fd, _ in events}

    def look(self) -> set[int]:
        """Return the watched descriptors that are readable, and do what a wake-up asks for."""
        self._unnoticed_since = inf
        ready, self._ready = self._ready, None
        if ready is None:
            ready = {fd for fd, _ in self._epoll.poll(0)}
        if self._unhandled:
            self._interrupt_main_thread()
        for fd in ready & self._calls.keys():
            if fd in self._calls:  # or another's call has just forgotten it
                self._calls[fd]()
        if self._periodic:
            now = time.monotonic()
            for one in self._periodic:
                if now >= one.due:
                    one.due = now + one.seconds
                    one.call()
        self.run_hooks()
        return ready

    def _on_wakeup(self) -> None:
        came = b""
        with suppress(BlockingIOError):
            came = os.read(self._wakeup, 65536)
        self._woken = True
        if set(came) - _NO_SIGNALS and not in_main_thread():
            # Python calls handlers in the main thread alone; the kernel may have given the signal
            # to this one, and left that one asleep.
            self._unhandled = True
            self._interrupt_main_thread()

    @staticmethod
    def _interrupt_main_thread() -> None:
        """Have it call the handlers of signals that have come, that of `NUDGE` the last."""
        signal.pthread_kill(threading.main_thread().ident or 0, NUDGE)

    def _on_lifeline(self) -> None:
        if self._lifeline is not None:
            self.forget(self._lifeline)
            self._lifeline = None
        self.drain()

    def close(self) -> None:
        """Give the signals back and close the descriptors."""
        if self.killed:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or it would end the process: its default
        for restore in reversed(self._restore):
            restore()
        self._close_pipe()

    def _close_pipe(self) -> None:
        self._epoll.close()
        os.close(self._wakeup)
        os.close(self._waker)
        self._wakeup = self._waker = -1

    def become_worker(self) -> None:
        """In a forked worker, which has a lifecycle of its own: close our copies."""
        signal.set_wakeup_fd(-1)
        self._close_pipe()
        if self._lifeline is not None:
            os.close(self._lifeline)
        self._restore.clear()
