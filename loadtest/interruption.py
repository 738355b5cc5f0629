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
    """Let SIGTERM, and the end of the terminal, do what Ctrl-C does; what is ignored stays so."""
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)


def _raise(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def blocked_in_children() -> Iterator[None]:
    """Start processes that no interruption reaches, from their first instruction on.

    Ctrl-C is sent to the whole process group (termios(3)), and an interpreter that is still
    importing would answer it with a traceback. A new process has the signal mask of the thread that
    started it (execve(2)); what comes meanwhile is delivered here when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Deferred:
    """Counts interruptions instead of raising `KeyboardInterrupt` wherever the program just is.

    For work whose state an exception in the middle of it would spoil; it asks how many came. Only
    the main thread can have handlers of signals: in another, none are counted.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if callable(before):  # what is ignored, or ends the process at once, does so still
                    self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _count(self, _number: int, _frame: Any) -> None:
        self.count += 1
