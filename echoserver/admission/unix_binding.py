"""Binding UNIX sockets to paths, where dead servers leave files, and others may be starting."""

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

_LOCK_TIMEOUT = 1.0  # seconds

_LOCK_POLL_INTERVAL = 0.01


def listen_at_path(
    place: Place, config: Config, identity: Identity | None
) -> tuple[UnixListeningSocket, SocketFile | None]:
    """Listen on a UNIX socket, and return it with its file, if it has one.

    Raises:
        BootError: The socket cannot be bound, or cannot listen.
    """
    path, failure = place.address, f"cannot listen on {place.host} ({config.source('host')})"
    sock = UnixListeningSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
    file = None
    try:
        if path.startswith("\0"):
            sock.bind(path)
            sock.listen(config.backlog)
        else:
            # Locked until the socket listens: before that, another server would take it for a
            # dead server's socket, and remove it.
            with _directory_lock(path):
                file = _bind_file(sock, path, int(config.socket_mode, 8), failure)
                sock.listen(config.backlog)
            if identity is not None:
                _change_owner(file, identity)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if file is not None:
            file.remove()
        raise BootError(f"{failure}: {_reason(error)}") from None
    except BaseException:
        sock.close()
        raise
    return sock, file


def _reason(error: OSError) -> str:
    reasons = {
        errno.EADDRINUSE: "a server listens there already; stop it or choose another",
        errno.ENOENT: "its directory does not exist",
        errno.EACCES: "this user may not make a file there",
    }
    return reasons.get(error.errno or 0, error.strerror or str(error))


def _bind_file(sock: socket.socket, path: str, mode: int, failure: str) -> SocketFile:
    """Make the file of a UNIX socket, in the place of one that a dead server has left."""
    os.fchmod(sock.fileno(), mode)  # the file has its socket's mode from the first moment on
    previous_umask = os.umask(0)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path, failure)
            sock.bind(path)
    finally:
        os.umask(previous_umask)
    return SocketFile.at(path)


def _remove_stale(path: str, failure: str) -> None:
    """Remove the file of a UNIX socket on which no server listens any more.

    Raises:
        BootError: The file is not a socket, or it is another user's.
        OSError: A server listens on the socket (EADDRINUSE).
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return  # its server has just ended
    if not stat.S_ISSOCK(mode):
        raise BootError(f"{failure}: there is a file that is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer in {errno.EACCES, errno.EPERM}:
        raise BootError(
            f"{failure}: there is another user's socket; remove it or choose another path"
        )
    if answer not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    Path(path).unlink(missing_ok=True)


@contextmanager
def _directory_lock(path: str) -> Iterator[None]:
    """Lock the directory of a file against other servers that bind a socket there.

    Otherwise, of two servers that find a dead server's socket at the same time, the second would
    remove the socket of the first. A directory that cannot be locked in time is used unlocked.
    """
    fd = -1
    try:
        with suppress(OSError):
            fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
            deadline = time.monotonic() + _LOCK_TIMEOUT
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


def _change_owner(file: SocketFile, identity: Identity) -> None:
    """Give a file to the user that this process is about to become.

    The file is opened first, with O_PATH, and checked, because every user who may write to the
    directory can put another file in its place.
    """
    if os.geteuid() != 0:
        return
    fd = os.open(file.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if file.identity_of(os.fstat(fd)) == file.identity:
            os.chown(f"/proc/self/fd/{fd}", identity.user, identity.group)
    finally:
        os.close(fd)
