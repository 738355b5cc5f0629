"""A line for each connection that has ended, in a file of its own.

A disk may take its time, and a terminal for ever. So lines go through a pipe, which is a queue
with a bound that the kernel keeps, to a process that does nothing but write them down. What the
pipe has no room for is dropped and counted.
"""

import errno
import fcntl
import os
import select
import signal
import stat
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from echoserver.errors import BootError
from echoserver.monitoring.helper_process import Helper
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.system.files import own_descriptor
from echoserver.system.privileges import Identity

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
_ROOM = 1 << 20  # bytes: what a process without privileges may ask for (pipe(7))
_STDOUT, _STDERR = 1, 2
_STANDARD = (_STDERR, _STDOUT)  # in this order: the log goes to the first
_CHUNK = 1 << 18
# Seconds in which lines gather: to be woken for each of them costs more than all the rest.
_GATHER = 0.05


class AccessLog:
    """The side of those that serve: any number of processes, which inherit it.

    Args:
        path: The file, which is appended to; ``-``: standard output. What names a descriptor of
            this process, such as ``/dev/stderr``, is written to as it was inherited.
        identity: Whom the server is to become. Where that user may write the file, it is opened,
            and made, as by that user.

    Raises:
        BootError: It cannot be opened.
    """

    def __init__(self, path: str, identity: Identity | None) -> None:
        self._path, self._identity = path, identity
        self._file = _open(path, identity)
        self._source, self._sink = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._sink, False)
        with suppress(OSError):  # beyond what all pipes of this user may hold
            fcntl.fcntl(self._sink, fcntl.F_SETPIPE_SZ, _ROOM)
        self._clock = (0, "")  # a second, and how it is written
        self._started = False
        self.dropped = 0
        """Lines that were not written down, of this process's."""

    def start(self, scoreboard: Scoreboard, log: Log) -> Helper:
        """Start the process that writes the lines down; again, where it has died.

        Args:
            scoreboard: Where it counts the lines that it cannot write.
            log: Where it says that it cannot reopen the file.
        """
        writer = _Writer(self._path, self._file, self._source, scoreboard, log)
        identity = self._identity
        first, self._started = not self._started, True

        def main(up: Callable[[], None]) -> None:
            if identity is not None:
                identity.assume()
            up()
            writer.run(reopen=not first)

        # The pipe and the file stay open here: a writer that is started again finds the lines that
        # waited, and needs no privileges that were given up meanwhile.
        return Helper(main, {self._source, self._file, log.fd})

    def write(self, peer: str, outcome: str, figures: tuple[int, int, int], seconds: float) -> None:
        """Note how a connection went; never wait.

        Args:
            peer: The client's address and port.
            outcome: Why it ended.
            figures: Bytes in, out and discarded.
            seconds: How long it was open.
        """
        # By hand, for there is nothing in it that JSON would have to escape, and a library takes
        # as long for it as the server for all the rest of a connection.
        now = time.time()
        second, written = self._clock  # as one, for other threads come this way
        if int(now) != second:
            written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            self._clock = int(now), written
        line = (
            b'{"time": "%b.%03dZ", "peer": "%b", "outcome": "%b", "bytes_in": %d, "bytes_out": %d, '
            b'"bytes_discarded": %d, "seconds": %.3f, "pid": %d}\n'
        ) % (
            written.encode(),
            now % 1 * 1000,
            peer.encode(),
            outcome.encode(),
            *figures,
            seconds,
            os.getpid(),
        )
        try:
            # Up to PIPE_BUF bytes go as a whole or not at all, whatever other processes write.
            os.write(self._sink, line[: select.PIPE_BUF])
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """No more lines come from this process."""
        os.close(self._sink)

    def reopen(self) -> None:
        """Let the next writer, if this one dies, begin with the file that has the path now."""
        if self._file in _STANDARD or own_descriptor(self._path) is not None:
            return
        with suppress(BootError):  # the writer says so
            file = _open(self._path)
            os.dup2(file, self._file, inheritable=False)
            _let_go(file)

    def release(self) -> None:
        """This process will start no writer any more: close what was kept open for one."""
        os.close(self._source)
        _let_go(self._file)

    @property
    def has_unwritten(self) -> bool:
        """Lines wait for the process that writes them down."""
        waiting = fcntl.ioctl(self._source, termios.FIONREAD, bytes(4))
        return int.from_bytes(waiting, sys.byteorder) > 0


def _open(path: str, identity: Identity | None = None) -> int:
    inherited = _STDOUT if path == "-" else own_descriptor(path)
    try:
        if inherited is not None:
            return inherited if inherited in _STANDARD else os.dup(inherited)
        file = _open_as(identity, path)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise BootError(f"--access-log: nobody reads the pipe {path}") from None
        raise BootError(f"--access-log: cannot write {path}: {error.strerror}") from None
    if (shared := _also_open_as(file)) is not None:
        os.close(file)
        return shared
    os.set_blocking(file, True)
    return file


def _also_open_as(file: int) -> int | None:
    """Return the standard descriptor that the same regular file is open for writing as.

    Others who share it may not append, as after ``2> FILE``, and would overwrite what is written
    by another descriptor.
    """
    this = os.fstat(file)
    for fd in _STANDARD:
        with suppress(OSError):  # it is closed
            writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if writable and stat.S_ISREG(this.st_mode) and os.path.samestat(this, os.fstat(fd)):
                return fd
    return None


def _let_go(file: int) -> None:
    if file not in _STANDARD:
        os.close(file)


def _open_as(identity: Identity | None, path: str) -> int:
    """Open it as a user who may have made it what it is: a link to a file of somebody else's."""
    # Without O_NONBLOCK, to open a pipe that nobody reads would wait, whatever signal came.
    if identity is None:
        return os.open(path, _FLAGS, 0o640)
    try:
        with identity.acting():
            return os.open(path, _FLAGS, 0o640)
    except PermissionError:
        with suppress(OSError):
            return os.open(path, _FLAGS | os.O_NOFOLLOW, 0o640)
        raise


class _Writer:
    """The other side, in a process of its own."""

    def __init__(self, path: str, file: int, source: int, scoreboard: Scoreboard, log: Log) -> None:
        self._path, self._file, self._source, self._scoreboard = path, file, source, scoreboard
        self._log = log
        self._inherited = path == "-" or own_descriptor(path) is not None
        self._reopen = self._partial_line_at_end = False

    def run(self, *, reopen: bool) -> None:
        """Write down what comes, until nobody is left from whom it could.

        Args:
            reopen: The file may have been moved since it was opened: another writer has died.
        """
        self._reopen = reopen
        signal.signal(signal.SIGHUP, self._on_hangup)
        rest = b""
        while data := os.read(self._source, _CHUNK):
            if self._reopen:
                self._reopen = False
                self._reopen_file()
            lines, end, rest = (rest + data).rpartition(b"\n")
            self._write(lines + end)  # whole ones: what fails must not be completed by another
            time.sleep(_GATHER)

    def _on_hangup(self, _number: int, _frame: Any) -> None:
        self._reopen = True

    def _reopen_file(self) -> None:
        """Go on in a new file, where someone has moved the old one (logrotate(8))."""
        if self._inherited:
            return
        try:
            file = _open(self._path)
        except BootError as error:
            self._log.error(
                "access_log_not_reopened",
                reason=str(error),
                advice="lines go on into the file that is open; after --user, that user must be "
                "allowed to create files in its directory",
            )
            return
        _let_go(self._file)
        self._file, self._partial_line_at_end = file, False

    def _write(self, data: bytes) -> None:
        unwritten = memoryview(data)
        try:
            if self._partial_line_at_end:  # the file ends with a part of a line
                os.write(self._file, b"\n")
                self._partial_line_at_end = False
            whole = stat.S_ISREG(os.fstat(self._file).st_mode)  # whatever is written at once
            while unwritten:
                size = len(unwritten) if whole else _lines_at_once(data, len(data) - len(unwritten))
                unwritten = unwritten[os.write(self._file, unwritten[:size]) :]
        except OSError:  # the disk is full, or standard output closed
            written = len(data) - len(unwritten)
            if written:
                self._partial_line_at_end = data[written - 1 : written] != b"\n"
            self._scoreboard.count_lost_lines(bytes(unwritten).count(b"\n"))


def _lines_at_once(data: bytes, start: int) -> int:
    """Return the bytes of the lines from `start` on that a pipe takes as one.

    What is longer than PIPE_BUF may be cut in two by what another program writes (pipe(7)).
    """
    if len(data) - start <= select.PIPE_BUF:
        return len(data) - start
    end = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1
    return (end or start + select.PIPE_BUF) - start
