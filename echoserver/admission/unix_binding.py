"""Binding UNIX sockets to paths, where dead servers have left files and others start meanwhile."""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from echoserver.admission.listening_sockets import SocketFile, UnixListeningSocket
from echoserver.admission.resolution import Place
from echoserver.config import Config
from echoserver.errors import BootError
from echoserver.system.privileges import Identity

_LOCK_PATIENCE = 1.0  # seconds

_LOCK_POLL_INTERVAL = 0.01


def listen_at_path(
    place: Place, config: Config, identity: Identity | None
) -> tuple[UnixListeningSocket, SocketFile | None]:
    """Listen on a UNIX socket, and return it with its file, if it has one.

    Raises:
        BootError: That cannot be done.
    """
    path, what = place.address, f"cannot listen on {place.host} ({config.source('host')})"
    sock = UnixListeningSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
    file = None
    try:
        if path.startswith("\0"):
            sock.bind(path)
            sock.listen(config.backlog)
        else:
            # Until it listens: who finds a socket on which nobody does takes it for a dead one.
            with _directory_locked(path):
                file = _bind_file(sock, path, int(config.socket_mode, 8), what)
                sock.listen(config.backlog)
            if identity is not None:
                _give(file, identity)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if file is not None:
            file.remove()
        raise BootError(f"{what}: {_why_not(error)}") from None
    except BaseException:
        sock.close()
        raise
    return sock, file


def _why_not(error: OSError) -> str:
    reasons = {
        errno.EADDRINUSE: "a server listens there already; stop it or choose another",
        errno.ENOENT: "its directory does not exist",
        errno.EACCES: "this user may not make a file there",
    }
    return reasons.get(error.errno or 0, error.strerror or str(error))


def _bind_file(sock: socket.socket, path: str, mode: int, what: str) -> SocketFile:
    """Make the file of a UNIX socket, in the place of one that a dead server has left."""
    os.fchmod(sock.fileno(), mode)  # the file has its socket's mode from the first moment on
    before = os.umask(0)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path, what)
            sock.bind(path)
    finally:
        os.umask(before)
    return SocketFile.at(path)


def _remove_stale(path: str, what: str) -> None:
    """Remove the file of a UNIX socket on which nobody listens any more.

    Raises:
        BootError: It is something else, or somebody does listen.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return  # its server has just ended
    if not stat.S_ISSOCK(mode):
        raise BootError(f"{what}: there is a file that is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer in {errno.EACCES, errno.EPERM}:
        raise BootError(f"{what}: there is another user's socket; remove it or choose another path")
    if answer not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    Path(path).unlink(missing_ok=True)


@contextmanager
def _directory_locked(path: str) -> Iterator[None]:
    """Keep others who ask for this out of a file's directory.

    Else of two servers that find a dead one's socket at the same time, the second would remove
    the first one's. Where the directory cannot be locked, or not in time, it goes without.
    """
    fd = -1
    try:
        with suppress(OSError):
            fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
            deadline = time.monotonic() + _LOCK_PATIENCE
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_LOCK_POLL_INTERVAL)
        yield
    finally:
        if fd != -1:
            os.close(fd)


def _give(file: SocketFile, identity: Identity) -> None:
    """Give a file to the user that this process is about to become.

    It is opened first, by a descriptor that can do nothing else: every user who may write to the
    directory can put something else in its place.
    """
    if os.geteuid() != 0:
        return
    fd = os.open(file.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if file.identity_of(os.fstat(fd)) == file.identity:
            os.chown(f"/proc/self/fd/{fd}", identity.user, identity.group)
    finally:
        os.close(fd)
