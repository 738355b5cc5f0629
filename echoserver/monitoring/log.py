"""Events as structured lines on stderr, which may be closed, full, or a pipe that nobody reads.

Logging never harms service: a line is written without blocking, or dropped and counted.
"""

import os
import select
import stat
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from copy import copy
from importlib import import_module
from types import ModuleType
from typing import Any

from echoserver.config import Config, LogLevel
from echoserver.terminal import has_colours, is_terminal


class _LazyModule(ModuleType):
    """Stands in for a module until one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


# Where rich is installed, structlog imports it, for tracebacks that this server never prints. That
# is a fifth of the memory that every forked child would begin with. It also imports asyncio, for
# loggers of coroutines, which takes a fifth of the server's startup time. There is no clean way
# around either: structlog has no option for it, and none of its submodules can be imported without
# the package, whose __init__ imports all of them. So both are hidden while structlog is imported.
# Modules that are imported already stay, and hidden ones can be imported again afterwards.
_substitutes = {"rich": None, "asyncio": _LazyModule("asyncio")}
_substitutes = {name: module for name, module in _substitutes.items() if name not in sys.modules}
sys.modules.update(_substitutes)  # type: ignore[arg-type] # None is the documented way to say "not there"
import structlog  # noqa: E402 - see above

for _name in _substitutes:
    del sys.modules[_name]

# A pipe takes up to PIPE_BUF bytes at once or not at all, so no line is ever split.
_MAX_LINE_SIZE = select.PIPE_BUF  # bytes
_MAX_VALUE_LENGTH = 300  # characters

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_STDERR = 2


class Log:
    """The server's event log: a structlog logger that limits rates and counts dropped lines."""

    def __init__(self, config: Config, writer: "StderrWriter | None" = None, **values: Any) -> None:
        self._writer = writer or StderrWriter()
        renderer = _renderer(config.log_format)
        chain = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _printable,
            renderer,
        ]

        def make_logger(level: int) -> Any:
            return structlog.wrap_logger(
                self._writer,
                processors=chain,
                wrapper_class=structlog.make_filtering_bound_logger(level),
                cache_logger_on_first_use=True,
                **values,
            )

        self._make_logger = make_logger
        self._announcer = make_logger(0)
        self._last: dict[str, float] = {}  # event → when its last line was logged
        # Event → how many were not logged since its last line, and how to log the last of them.
        self._repeats: dict[str, tuple[int, Any, dict[str, Any]]] = {}
        self._lock = threading.Lock()  # of both, because any thread may log
        self.set_level(config.log_level)

    def of(self, config: Config, **values: Any) -> "Log":
        """Return a log that writes to the same file, with `values` in every line."""
        return Log(config, self._writer.clone(), **values)

    def set_level(self, level: LogLevel) -> None:
        """Log events of this severity and above."""
        self.debugging = level == "debug"
        """Whether debug events are logged. Check this before composing a line per connection."""
        logger = self._make_logger(_LEVELS[level])
        self.debug, self.info = logger.debug, logger.info
        self.warning, self.error = logger.warning, logger.error

    def announce(self, event: str, **values: Any) -> None:
        """Log an event at any level, for the two lines that programs wait for."""
        self._announcer.info(event, **values)

    def warning_each_second(self, event: str, **values: Any) -> None:
        """Log a warning that clients may cause without end, at most once a second per `event`."""
        self._each_second(event, self.warning, values)

    def error_each_second(self, event: str, **values: Any) -> None:
        """Log an error that clients may cause without end, at most once a second per `event`."""
        self._each_second(event, self.error, values)

    def _each_second(self, event: str, write: Any, values: dict[str, Any]) -> None:
        now = time.monotonic()
        with self._lock:
            count = self._repeats[event][0] if event in self._repeats else 0
            if now - self._last.get(event, -1.0) < 1.0:
                self._repeats[event] = count + 1, write, values
                return
            self._last[event] = now
            self._repeats.pop(event, None)
        write(event, **values, **({"repeated": count} if count else {}))

    def flush_repeats(self) -> None:
        """Log the last of each event that was held back, and how many there were before it."""
        with self._lock:
            repeats, self._repeats = self._repeats, {}
        for event, (count, write, values) in repeats.items():
            write(event, **values, **({"repeated": count - 1} if count > 1 else {}))

    def close(self) -> None:
        """Close the log's own descriptor, for a program that goes on after its server."""
        self._writer.close()

    @property
    def fd(self) -> int:
        """The descriptor that lines are written to."""
        return self._writer.fd

    @property
    def dropped(self) -> int:
        """Lines that stderr did not take."""
        return self._writer.dropped

    def count_dropped(self, lines: int) -> None:
        """Add the dropped lines of another process's log to this count."""
        self._writer.dropped += lines


class StderrWriter:
    """Writes lines to stderr and never waits for it.

    O_NONBLOCK belongs to the open file description, which stderr shares with other programs. So
    the file behind it is reopened where that is allowed, and polled for room before each write
    where it is not (a container's pipe that belongs to another user, or a socket).

    A regular file has no reader to wait for, and is written to as it was inherited: all programs
    that share it share one offset, which the kernel locks for each write. Reopened, it would have
    an offset of its own, and other programs would overwrite these lines, unless all of them append.
    """

    def __init__(self, fd: int = _STDERR) -> None:
        self.dropped = 0
        """How many lines stderr did not take."""
        self.fd = fd
        """The descriptor that is written to."""
        self._poll_first = False
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self.fd = os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            self._poll_first = True

    def clone(self) -> "StderrWriter":
        """Return a writer to the same file for another process, with a count of its own."""
        writer = copy(self)
        writer.dropped = 0
        return writer

    def msg(self, line: str) -> None:
        """Write one line, or drop and count it."""
        data = line.encode("utf-8", "backslashreplace")[: _MAX_LINE_SIZE - 1] + b"\n"
        try:
            if self._poll_first and not self._has_room():
                raise BlockingIOError
            if os.write(self.fd, data) != len(data):
                self.dropped += 1
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """Close the reopened file; later lines go to stderr as it was inherited."""
        if self.fd != _STDERR:
            os.close(self.fd)
            self.fd, self._poll_first = _STDERR, True

    # structlog calls the method that is named after the level.
    debug = info = warning = error = critical = msg

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return any(events & select.POLLOUT for _, events in poll.poll(0))


def _renderer(log_format: str) -> Any:
    if log_format == "auto":
        log_format = "console" if is_terminal(sys.stderr) else "json"
    if log_format == "json":
        return structlog.processors.JSONRenderer(default=str)
    return structlog.dev.ConsoleRenderer(
        colors=has_colours(sys.stderr),
        exception_formatter=structlog.dev.plain_traceback,
    )


def _printable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Put the event first, and escape control characters.

    So no text from a peer or a plugin can start a new line.
    """
    clean = {"event": event.pop("event", ""), **event}
    for key, value in clean.items():
        if isinstance(value, str):
            text = value
            if not text.isprintable():
                text = text.encode("unicode_escape").decode("ascii")
            clean[key] = text[:_MAX_VALUE_LENGTH]
    return clean
