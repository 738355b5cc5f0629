"""Ctrl-C, and the signals by which programs and terminals ask for the same."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

EXIT_INTERRUPTED = 128 + signal.SIGINT


def treat_all_as_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP do what Ctrl-C does; signals that are ignored stay ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)


def _raise(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def block_signals_in_children() -> Iterator[None]:
    """Block the signals that interrupt, in processes that are started within the block.

    Ctrl-C is sent to the whole process group (termios(3)), and an interpreter that is still
    importing would answer it with a traceback. A new process has the signal mask of the thread that
    started it (execve(2)). A signal that arrives meanwhile is delivered to this process when the
    block ends.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class DeferredInterrupts:
    """Counts interruptions instead of raising `KeyboardInterrupt` wherever the program just is.

    It is for work whose state an exception in the middle would spoil; that work looks at `count`.
    Only the main thread can set signal handlers: in any other thread, nothing is counted.
    """

    def __init__(self) -> None:
        self.count = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):  # not SIG_IGN or SIG_DFL, which stay in force
                    self._handlers[number] = signal.signal(number, self._count)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def _count(self, _number: int, _frame: Any) -> None:
        self.count += 1
