"""A prompt with line editing and history that watches a connection at the same time."""

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from clients.client import has_pending
from echoserver.terminal import has_motion

if TYPE_CHECKING:
    from clients.tls import Socket

_WAKE_SIGNAL = signal.SIGURG  # ignored by default: one that comes late harms nobody
_WAKE_INTERVAL = 0.05  # seconds: readline overlooks a signal while it sets itself up
_CLEAR_LINE = "\r\x1b[K"


class _Woken(Exception):  # noqa: N818 - it is not an error
    """There is something to read at the connection."""


class Prompt:
    """Asks for lines until there is something to read at `sock`.

    Neither readline nor a terminal's own line editing waits for anything but keys. So a thread
    waits for the connection, and ends their wait by a signal whose handler raises an exception, as
    Ctrl-C does. What had been typed by then stands in the line again at the next prompt.
    """

    def __init__(self, sock: "Socket") -> None:
        self._sock = sock
        self._main = threading.main_thread().ident or 0
        self._asking = self._editing = False
        self._typed = ""
        self._readline: ModuleType | None = None
        with suppress(ImportError):
            import readline  # noqa: PLC0415 - importing it gives input() line editing and history

            self._readline = readline

    def __enter__(self) -> Self:
        self._handler_before = signal.signal(_WAKE_SIGNAL, self._wake)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(_WAKE_SIGNAL, self._handler_before)

    def ask(self, text: str) -> str | None:
        """Return a line as typed; None as soon as there is something to read at the connection.

        Raises:
            EOFError: No more will be typed.
        """
        lines: list[str] = []
        if self._readline is not None:
            self._readline.set_startup_hook(self._begin_editing)
        ended, end = os.pipe()
        answered = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended, answered), daemon=True)
        try:
            watcher.start()
            try:
                self._asking = True
                # In a single call, after which the exception may come, but not before the line
                # that was typed is in the list.
                lines.extend(map(input, [text]))
            finally:
                self._asking = self._editing = False
        except _Woken:
            if not lines:
                print(_CLEAR_LINE if has_motion(sys.stdout) else "\n", end="", flush=True)
        finally:
            answered.set()
            os.close(end)
            watcher.join()
            os.close(ended)
        if not lines:
            return None
        self._typed = ""
        return lines[0]

    def _watch(self, ended: int, answered: threading.Event) -> None:
        """Wake the main thread when there is something to read, until it has noticed."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(ended, select.POLLIN)
        if not has_pending(self._sock) and any(fd == ended for fd, _ in poll.poll()):
            return
        while not answered.is_set():
            signal.pthread_kill(self._main, _WAKE_SIGNAL)
            answered.wait(_WAKE_INTERVAL)

    def _wake(self, *_: Any) -> None:
        if not self._asking:
            return
        if self._editing and self._readline is not None:
            self._typed = self._readline.get_line_buffer()
        raise _Woken

    def _begin_editing(self) -> None:
        """Put back what had been typed; readline calls this at the beginning of a line."""
        if self._readline is not None:
            self._readline.insert_text(self._typed)
        self._editing = True
