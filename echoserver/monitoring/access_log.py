"""The access log: a line for each connection that has ended, in a file of its own.

A disk may be slow, and a terminal may block for ever. So lines go through a pipe, which is a queue
that the kernel bounds, to a writer process that does nothing else. Lines that the pipe has no room
for are dropped and counted.
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
_PIPE_SIZE = 1 << 20  # bytes: the most that an unprivileged process may request (pipe(7))
_STDOUT, _STDERR = 1, 2
_STANDARD = (_STDERR, _STDOUT)  # in this order, as the log goes to stderr
_CHUNK_SIZE = 1 << 18  # bytes
# Seconds between two writes. A wake-up for each line would cost more than all the rest.
_BATCH_INTERVAL = 0.05


class AccessLog:
    """The serving side of the access log, which any number of processes inherit.

    Args:
        path: The file, which is appended to; ``-``: standard output. A path that names a descriptor
            of this process, such as ``/dev/stderr``, is written to as it was inherited.
        identity: The identity that the server switches to. If that user may write the file, the
            file is opened, and created, as that user.

    Raises:
        BootError: The file cannot be opened.
    """

    def __init__(self, path: str, identity: Identity | None) -> None:
        self._path, self._identity = path, identity
        self._file = _open(path, identity)
        self._source, self._sink = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._sink, False)
        with suppress(OSError):  # the limit for all pipes of this user is reached
            fcntl.fcntl(self._sink, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._clock = (0, "")  # a second in Unix time, and its timestamp
        self._started = False
        self.dropped = 0
        """How many lines of this process were dropped."""

    def start(self, scoreboard: Scoreboard, log: Log) -> Helper:
        """Start the writer process, or start it again after it has died.

        Args:
            scoreboard: Where the writer counts the lines that it cannot write.
            log: Where the writer reports that it cannot reopen the file.
        """
        writer = _Writer(self._path, self._file, self._source, scoreboard, log)
        identity = self._identity
        first, self._started = not self._started, True

        def main(report_ready: Callable[[], None]) -> None:
            if identity is not None:
                identity.assume()
            writer.handle_hangups()  # one that comes as soon as the server listens is not lost
            report_ready()
            writer.run(reopen=not first)

        # The pipe and the file stay open here, so that a restarted writer finds the pending lines,
        # and needs no privileges that were dropped meanwhile.
        return Helper(main, {self._source, self._file, log.fd})

    def write(self, peer: str, outcome: str, figures: tuple[int, int, int], seconds: float) -> None:
        """Log one connection without ever blocking.

        Args:
            peer: The client's address and port.
            outcome: Why the connection ended.
            figures: Bytes in, out and discarded.
            seconds: How long the connection was open.
        """
        # The line is formatted by hand: nothing in it needs escaping in JSON, and a library would
        # take as long for it as the server takes for all the rest of a connection.
        now = time.time()
        second, timestamp = self._clock  # read as one, because other threads change it
        if int(now) != second:
            timestamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            self._clock = int(now), timestamp
        line = (
            b'{"time": "%b.%03dZ", "peer": "%b", "outcome": "%b", "bytes_in": %d, "bytes_out": %d, '
            b'"bytes_discarded": %d, "seconds": %.3f, "pid": %d}\n'
        ) % (
            timestamp.encode(),
            now % 1 * 1000,
            peer.encode(),
            outcome.encode(),
            *figures,
            seconds,
            os.getpid(),
        )
        try:
            # Up to PIPE_BUF bytes are written whole or not at all, whatever other processes write.
            os.write(self._sink, line[: select.PIPE_BUF])
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """Close the pipe's write end: this process logs no more lines."""
        os.close(self._sink)

    def reopen(self) -> None:
        """Reopen the path here, for a writer that may have to replace the present one."""
        if self._file in _STANDARD or own_descriptor(self._path) is not None:
            return
        with suppress(BootError):  # the writer reports it
            file = _open(self._path)
            os.dup2(file, self._file, inheritable=False)
            _close_unless_standard(file)

    def release(self) -> None:
        """Close what was kept open for writers: this process will not start another one."""
        os.close(self._source)
        _close_unless_standard(self._file)

    @property
    def has_pending_lines(self) -> bool:
        """Whether lines in the pipe still wait for the writer."""
        size = fcntl.ioctl(self._source, termios.FIONREAD, bytes(4))
        return int.from_bytes(size, sys.byteorder) > 0


def _open(path: str, identity: Identity | None = None) -> int:
    descriptor = _STDOUT if path == "-" else own_descriptor(path)
    try:
        if descriptor is not None:
            return descriptor if descriptor in _STANDARD else os.dup(descriptor)
        file = _open_as(identity, path)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise BootError(f"--access-log: nobody reads the pipe {path}") from None
        raise BootError(f"--access-log: cannot write {path}: {error.strerror}") from None
    if (standard := _standard_descriptor_of(file)) is not None:
        os.close(file)
        return standard
    os.set_blocking(file, True)
    return file


def _standard_descriptor_of(file: int) -> int | None:
    """Return the standard descriptor under which the same regular file is open for writing, if any.

    Other writers to that descriptor may not append, as after ``2> FILE``, and would overwrite what
    is written through another descriptor.
    """
    status = os.fstat(file)
    for fd in _STANDARD:
        with suppress(OSError):  # the descriptor is closed
            writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if writable and stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.fstat(fd)):
                return fd
    return None


def _close_unless_standard(file: int) -> None:
    if file not in _STANDARD:
        os.close(file)


def _open_as(identity: Identity | None, path: str) -> int:
    """Open the file with the permissions of `identity`.

    That user may have made the path a link to a file of somebody else's.
    """
    # Without O_NONBLOCK, opening a pipe that nobody reads would block, even when signals come.
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
    """The writing side of the access log, in a process of its own."""

    def __init__(self, path: str, file: int, source: int, scoreboard: Scoreboard, log: Log) -> None:
        self._path, self._file, self._source, self._scoreboard = path, file, source, scoreboard
        self._log = log
        self._inherited = path == "-" or own_descriptor(path) is not None
        self._reopen = self._partial_line_at_end = False

    def run(self, *, reopen: bool) -> None:
        """Write lines to the file until no process is left that could log any.

        Args:
            reopen: Reopen the file first. It may have been moved since it was opened, because this
                writer replaces one that died.
        """
        self._reopen = self._reopen or reopen
        rest = b""
        while data := os.read(self._source, _CHUNK_SIZE):
            if self._reopen:
                self._reopen = False
                self._reopen_file()
            lines, end, rest = (rest + data).rpartition(b"\n")
            self._write(lines + end)  # whole lines: the rest of one that failed must not follow
            time.sleep(_BATCH_INTERVAL)

    def handle_hangups(self) -> None:
        """Have SIGHUP reopen the file before the next line is written."""
        signal.signal(signal.SIGHUP, self._on_hangup)

    def _on_hangup(self, _number: int, _frame: Any) -> None:
        self._reopen = True

    def _reopen_file(self) -> None:
        """Reopen the path, because the old file may have been moved (logrotate(8))."""
        if self._inherited:
            return
        try:
            file = _open(self._path)
        except BootError as error:
            self._log.error(
                "access_log_not_reopened",
                reason=str(error),
                advice="lines still go to the open file; after --user, that user must be "
                "allowed to create files in its directory",
            )
            return
        _close_unless_standard(self._file)
        self._file, self._partial_line_at_end = file, False

    def _write(self, data: bytes) -> None:
        unwritten = memoryview(data)
        try:
            if self._partial_line_at_end:
                os.write(self._file, b"\n")
                self._partial_line_at_end = False
            atomic = stat.S_ISREG(os.fstat(self._file).st_mode)  # regardless of the size
            while unwritten:
                start = len(data) - len(unwritten)
                size = len(unwritten) if atomic else _atomic_size(data, start)
                unwritten = unwritten[os.write(self._file, unwritten[:size]) :]
        except OSError:  # the disk is full, or standard output closed
            size = len(data) - len(unwritten)
            if size:
                self._partial_line_at_end = data[size - 1 : size] != b"\n"
            self._scoreboard.count_lost_lines(bytes(unwritten).count(b"\n"))


def _atomic_size(data: bytes, start: int) -> int:
    """Return the size in bytes of the lines from `start` on that a pipe takes in one piece.

    A write longer than PIPE_BUF may be split by what another program writes (pipe(7)).
    """
    if len(data) - start <= select.PIPE_BUF:
        return len(data) - start
    end = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1
    return (end or start + select.PIPE_BUF) - start
