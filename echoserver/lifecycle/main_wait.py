"""The one thing that the main flow of a server waits for, and the signals that end that wait.

A signal only moves the state and ends that wait. The wake-up is a byte in a pipe (the
self-pipe trick), because a signal, a slot that came free in another thread and a readable
listener must all end the same wait. It waits for an epoll descriptor, which is readable when one of
those that it watches is, and so can itself be watched by any event loop (epoll(7)).
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

from echoserver.flow import Readable, Wait
from echoserver.lifecycle.signals import SignalledState
from echoserver.lifecycle.state import WAKE_SIGNAL, in_main_thread

# Seconds between two interruptions of a main thread that has to run a signal handler. One can be
# lost between Python's last check for signals and the lock for which the thread then waits.
_INTERRUPTION_INTERVAL = 0.05

_NO_SIGNAL_NUMBERS = {0, WAKE_SIGNAL}
"""What `Lifecycle.wake` and an interruption leave in the pipe, beside the numbers of signals."""


@dataclass(slots=True)
class _PeriodicCall:
    seconds: float
    call: Callable[[], None]
    due: float


class Lifecycle(SignalledState):
    """The state of one server, and its main flow's wait.

    Args:
        drain_timeout: Seconds that a drain may take; 0: as long as it takes.
        lifeline: A descriptor at whose end of file the drain begins; None: there is none.
    """

    def __init__(self, drain_timeout: float, lifeline: int | None = None) -> None:
        super().__init__(drain_timeout)
        self._epoll = select.epoll()
        self._ready: set[int] | None = None
        self._calls: dict[int, Callable[[], None]] = {}
        self._periodic: list[_PeriodicCall] = []
        self.watch(self._wake_reader, self._on_wakeup)
        self._lifeline = lifeline
        if self._lifeline is not None:
            self.watch(self._lifeline, self._on_lifeline)

    # -- waiting -------------------------------------------------------------------------------

    def watch(
        self, fd: int, call: Callable[[], None] | None = None, *, exclusive: bool = False
    ) -> None:
        """Let `fd` end the wait when it is readable.

        Args:
            fd: What to watch.
            call: The function to call then, in the main flow.
            exclusive: Not all of several processes that watch `fd` need to wake up.
        """
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLEXCLUSIVE if exclusive else 0))
        if call is not None:
            self._calls[fd] = call

    def forget(self, fd: int) -> None:
        """Stop watching `fd`."""
        self._epoll.unregister(fd)
        self._calls.pop(fd, None)

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` in the main flow, repeatedly, each time that `seconds` have passed."""
        self._periodic.append(_PeriodicCall(seconds, call, time.monotonic()))

    def next_wait(self, seconds: float | None = None) -> Readable:
        """Return what the main flow has to wait for; call `dispatch_ready` after the wait."""
        if self._periodic:
            due = max(0.0, min(one.due for one in self._periodic) - time.monotonic())
            seconds = due if seconds is None else min(seconds, due)
        if self._signal_pending:
            interval = _INTERRUPTION_INTERVAL
            seconds = interval if seconds is None else min(seconds, interval)
        return Readable(self._epoll.fileno(), seconds)

    def block(self, wait: Wait) -> None:
        """Carry out a wait of the main flow by blocking this thread."""
        events = self._epoll.poll(wait.seconds)
        self._ready = {fd for fd, _ in events}

    def dispatch_ready(self) -> set[int]:
        """Return the watched descriptors that are readable, and call what is due."""
        self._second_signal_time = inf
        ready, self._ready = self._ready, None
        if ready is None:
            ready = {fd for fd, _ in self._epoll.poll(0)}
        if self._signal_pending:
            self._interrupt_main_thread()
        for fd in ready & self._calls.keys():
            if fd in self._calls:  # unless another descriptor's call has just removed it
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
        signal_numbers = b""
        with suppress(BlockingIOError):
            signal_numbers = os.read(self._wake_reader, 65536)
        self._wake_pending = True
        if set(signal_numbers) - _NO_SIGNAL_NUMBERS and not in_main_thread():
            # Python runs signal handlers only in the main thread, but the kernel may have
            # delivered the signal to this thread, and left the main thread asleep.
            self._signal_pending = True
            self._interrupt_main_thread()

    @staticmethod
    def _interrupt_main_thread() -> None:
        """Make the main thread run the handlers of pending signals, that of `WAKE_SIGNAL` last."""
        signal.pthread_kill(threading.main_thread().ident or 0, WAKE_SIGNAL)

    def _on_lifeline(self) -> None:
        if self._lifeline is not None:
            self.forget(self._lifeline)
            self._lifeline = None
        self.begin_drain()

    def close(self) -> None:
        """Restore the signal handlers, and close the descriptors."""
        self.restore_signals()
        self._close_pipe()

    def _close_pipe(self) -> None:
        self._epoll.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._wake_reader = self._wake_writer = -1

    def become_worker(self) -> None:
        """Close a forked worker's copies of the descriptors; it has a lifecycle of its own."""
        signal.set_wakeup_fd(-1)
        self._close_pipe()
        if self._lifeline is not None:
            os.close(self._lifeline)
        self._restore.clear()
