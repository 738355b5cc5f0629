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

from echoserver.flow import Readable, Wait
from echoserver.lifecycle.signals import SignalledState
from echoserver.lifecycle.state import WAKE_SIGNAL, in_main_thread

# Seconds between two interruptions of a main thread that is to run a signal's handler. One can be
# lost: between Python's last look at what has come and the lock that the thread then waits for.
_NEXT_INTERRUPTION = 0.05

_NOT_SIGNALS = {0, WAKE_SIGNAL}
"""What `Lifecycle.wake` and an interruption leave in the pipe, beside the numbers of signals."""


@dataclass(slots=True)
class _Periodic:
    seconds: float
    call: Callable[[], None]
    due: float


class Lifecycle(SignalledState):
    """The state of one server, and its main flow's wait.

    Args:
        drain_timeout: Seconds that a drain may take; 0: as long as it takes.
        lifeline: A descriptor at whose end the drain begins; None: there is none.
    """

    def __init__(self, drain_timeout: float, lifeline: int | None = None) -> None:
        super().__init__(drain_timeout)
        self._epoll = select.epoll()
        self._ready: set[int] | None = None
        self._calls: dict[int, Callable[[], None]] = {}
        self._periodic: list[_Periodic] = []
        self.watch(self._wakeup, self._on_wakeup)
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
            call: What to do about it, in the main flow.
            exclusive: Of several processes that watch it, not all need wake up.
        """
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLEXCLUSIVE if exclusive else 0))
        if call is not None:
            self._calls[fd] = call

    def forget(self, fd: int) -> None:
        """Stop watching `fd`."""
        self._epoll.unregister(fd)
        self._calls.pop(fd, None)

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something in the main flow again and again, whenever so much time has passed."""
        self._periodic.append(_Periodic(seconds, call, time.monotonic()))

    def next_wait(self, seconds: float | None = None) -> Readable:
        """Return what the main flow waits for; after it comes `dispatch_ready`."""
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

    def dispatch_ready(self) -> set[int]:
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
        if set(came) - _NOT_SIGNALS and not in_main_thread():
            # Python calls handlers in the main thread alone; the kernel may have given the signal
            # to this one, and left that one asleep.
            self._unhandled = True
            self._interrupt_main_thread()

    @staticmethod
    def _interrupt_main_thread() -> None:
        """Have it call the handlers of signals that have come, that of `WAKE_SIGNAL` the last."""
        signal.pthread_kill(threading.main_thread().ident or 0, WAKE_SIGNAL)

    def _on_lifeline(self) -> None:
        if self._lifeline is not None:
            self.forget(self._lifeline)
            self._lifeline = None
        self.drain()

    def close(self) -> None:
        """Give the signals back and close the descriptors."""
        self.restore_signals()
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
