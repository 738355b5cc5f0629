"""What a server listens on: sockets bound here, or handed over by a service manager."""

import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from echoserver.addresses import UNIX, format_address, is_unix, socket_name, unix_host
from echoserver.config import Config
from echoserver.conversation.exchange import write_patience
from echoserver.errors import BootError
from echoserver.system.privileges import Identity
from echoserver.system.sock_diag import unix_accept_queue
from echoserver.system.sockets import accept_queue, set_timeout
from echoserver.system.systemd import inherited

# A free port at the first address may be taken at the next one: then another is tried.
_ATTEMPTS = 20

_LOCK_PATIENCE = 1.0  # seconds
_GLANCE = 0.01

_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group (unix(7))


class ListeningSocket(socket.socket):
    """A listening TCP socket, which knows its family and its type.

    `socket.socket` asks enumerations for them at every ``accept``, which is a third of its time.
    """

    family = socket.AF_UNSPEC
    type = socket.SOCK_STREAM
    passes_options_on = True
    """What is set on it holds for the connections that it accepts, too."""

    def __init__(self, family: int, kind: int, protocol: int, fd: int | None = None) -> None:
        super().__init__(family, kind, protocol, fd)
        self.family = socket.AddressFamily(family)

    @property
    def address(self) -> tuple[str, int]:
        """Its host and port."""
        host, port, *_ = self.getsockname()
        return host, port

    def queue(self) -> tuple[int, int]:
        """Return how many clients wait to be accepted, and how many may."""
        return accept_queue(self)


class UnixListeningSocket(ListeningSocket):
    """A listening UNIX socket. A client of it has no address, but a process and a user."""

    passes_options_on = False

    def __init__(self, family: int, kind: int, protocol: int, fd: int | None = None) -> None:
        super().__init__(family, kind, protocol, fd)
        # To ask for the queue takes a descriptor, and clients may have all the others.
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a client; return its socket, and who it was when it connected."""
        sock, _ = super().accept()
        size = _CREDENTIALS.size
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        process, user, _ = _CREDENTIALS.unpack(found)
        return sock, (f"{UNIX}pid={process},uid={user}", 0)

    @property
    def address(self) -> tuple[str, int]:
        """Its host, and 0 for a port."""
        return unix_host(self.getsockname()), 0

    def queue(self) -> tuple[int, int]:
        """Return how many clients wait to be accepted, and how many may; 0 if it is not known."""
        self._give_spare()
        try:
            return unix_accept_queue(self)
        except OSError:
            return 0, 0
        finally:
            with suppress(OSError):  # a client may have taken it
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close it."""
        self._give_spare()
        super().close()

    def _give_spare(self) -> None:
        if self._spare != -1:
            os.close(self._spare)
            self._spare = -1


@dataclass(frozen=True, slots=True)
class _SocketFile:
    """The file of a UNIX socket that was bound here."""

    path: str
    identity: tuple[int, int, int]

    @staticmethod
    def identity_of(found: os.stat_result) -> tuple[int, int, int]:
        """Return what no other file has: the number of one that was removed is used again."""
        return found.st_dev, found.st_ino, found.st_mtime_ns

    @classmethod
    def at(cls, path: str) -> Self:
        """Return the file at a path."""
        return cls(path, cls.identity_of(os.lstat(path)))

    def remove(self) -> None:
        """Remove it, unless another one has taken its place."""
        with suppress(OSError):
            if self.identity_of(os.lstat(self.path)) == self.identity:
                Path(self.path).unlink()


class ListeningSockets:
    """All sockets that a server listens on, of which there is one at least.

    Args:
        sockets: Those that listen already.
        handed_over: They are a service manager's: they outlive this server, and so do the clients
            in their queues.
    """

    def __init__(
        self, sockets: Sequence[ListeningSocket] = (), *, handed_over: bool = False
    ) -> None:
        self._sockets = list(sockets)
        self._files: list[_SocketFile] = []
        self._maker = os.getpid()
        self.handed_over = handed_over

    def __iter__(self) -> Iterator[ListeningSocket]:
        return iter(self._sockets)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The host and port of each."""
        return [sock.address for sock in self._sockets]

    @property
    def shown(self) -> list[str]:
        """Their addresses, as people read them."""
        return [format_address(*address) for address in self.addresses]

    def add(self, sock: ListeningSocket, file: _SocketFile | None = None) -> None:
        """Add one."""
        self._sockets.append(sock)
        if file is not None:
            self._files.append(file)

    def set_timeouts(self, config: Config) -> None:
        """Set what the connections that are accepted from now on inherit."""
        for sock in self._sockets:
            set_timeouts(sock, config)

    def queue(self) -> tuple[int, int]:
        """Return how many clients wait to be accepted, and how many may, in all queues."""
        waiting, limits = zip(*(sock.queue() for sock in self._sockets), strict=True)
        return sum(waiting), sum(limits)

    def remove_files(self) -> None:
        """Let no more clients find the UNIX sockets: remove those files that this process made."""
        if os.getpid() == self._maker:
            while self._files:
                self._files.pop().remove()

    def close(self) -> None:
        """Close this process's copies."""
        self.remove_files()
        for sock in self._sockets:
            sock.close()


def set_timeouts(sock: socket.socket, config: Config) -> None:
    """Set the timeouts that blocking drivers leave to the kernel, on a connection or a listener."""
    set_timeout(sock, socket.SO_RCVTIMEO, config.idle_timeout)
    set_timeout(sock, socket.SO_SNDTIMEO, write_patience(config.write_timeout))


def bind(
    config: Config,
    addresses: "ResolvedAddresses | None" = None,
    identity: Identity | None = None,
) -> ListeningSockets:
    """Return listening sockets for all hosts of `config`.

    The options of a TCP socket are inherited by every connection that it accepts, which saves
    three system calls for each: TCP_NODELAY, and the timeouts that the blocking driver leaves to
    the kernel.

    Args:
        config: The port, the backlog and the timeouts.
        addresses: What `resolve` has returned for it; None: it is asked now.
        identity: Who is to own the files of UNIX sockets; None: the user of this process.

    Raises:
        BootError: An address cannot be resolved or listened on.
    """
    addresses = addresses or resolve(config)
    if addresses.handed_over:
        sockets = [_adopted(fd) for fd in addresses.handed_over]
        found = ListeningSockets(sockets, handed_over=True)
        found.set_timeouts(config)
        return found
    attempts = _ATTEMPTS if not config.port else 1
    while True:
        sockets_of_ours = ListeningSockets()
        attempts -= 1
        try:
            _listen(addresses, config, identity, sockets_of_ours)
        except _PortTakenError as error:
            sockets_of_ours.close()
            if not attempts:
                raise BootError(str(error)) from None
        except BaseException:
            sockets_of_ours.close()
            raise
        else:
            return sockets_of_ours


class _PortTakenError(BootError):
    """Something listens on that port of that address."""


def _adopted(fd: int) -> ListeningSocket:
    """Return a socket that a service manager listens on for us."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        family = sock.family
    kind = UnixListeningSocket if family == socket.AF_UNIX else ListeningSocket
    adopted = kind(family, socket.SOCK_STREAM, 0, fd)
    if adopted.passes_options_on:
        adopted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    adopted.setblocking(False)
    return adopted


# -- where to listen ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """One address to listen on."""

    host: str
    """As it was typed, which may be a name with several addresses."""
    family: int
    address: Any
    """As bind(2) takes it, with any port."""

    def covered_by(self, other: "_Place") -> bool:
        """Tell whether a socket that listens on another one listens on this one, too."""
        if socket.AF_UNIX in {self.family, other.family}:
            return bool(self.address == other.address)
        if other.address[0] == "::":  # which means every address, of both families
            return True
        if self.family != other.family:
            return False
        wide, narrow = other.address[0], self.address[0]
        return bool(wide == narrow or (wide == "0.0.0.0" and narrow != "::"))

    def at(self, port: int) -> Any:
        """Return its address with a port."""
        if self.family == socket.AF_UNIX:
            return self.address
        host, _, *scope = self.address
        return (host, port, *scope)


@dataclass(frozen=True, slots=True)
class ResolvedAddresses:
    """Where a server listens, before it does."""

    places: Sequence[_Place] = ()
    """Each is there once, however many hosts name it."""
    included: frozenset[str] = frozenset()
    """The hosts of which a part is listened on for another host."""
    handed_over: Sequence[int] = ()
    """The descriptors of listening sockets that a service manager has made; then there is nothing
    to resolve."""


def resolve(config: Config) -> ResolvedAddresses:
    """Return the addresses of all hosts of `config`.

    A name server that does not answer keeps this waiting for longer than a person does, and no
    handler of a signal runs meanwhile (getaddrinfo(3) is C); so it comes before there are any, and
    a signal ends the process.

    Raises:
        BootError: A host cannot be resolved, or what was handed over is not usable.
    """
    if handed_over := inherited():
        return ResolvedAddresses(handed_over=handed_over)
    found: list[_Place] = []
    for host in config.host:
        if is_unix(host):
            found.append(_Place(host, socket.AF_UNIX, socket_name(host)))
            continue
        try:
            infos = socket.getaddrinfo(
                host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise BootError(
                f"{config.source('host')}: cannot resolve the host {host!r}: {reason}"
            ) from None
        found += [_Place(host, family, address) for family, _, _, _, address in infos]
    kept: list[_Place] = []
    for index, place in enumerate(found):
        # Of two that cover each other, the first.
        before = any(place.covered_by(other) for other in found[:index])
        if not before and not any(
            place.covered_by(other) and not other.covered_by(place) for other in found[index + 1 :]
        ):
            kept.append(place)
    return ResolvedAddresses(kept, frozenset(place.host for place in found if place not in kept))


# -- listening ------------------------------------------------------------------------------------


def _listen(
    addresses: ResolvedAddresses,
    config: Config,
    identity: Identity | None,
    sockets: ListeningSockets,
) -> None:
    """Listen on all places, and on the same port at all of them.

    A name may have addresses that this machine does not, as ``localhost`` where IPv6 is off: one
    of its addresses is enough.
    """
    port = config.port
    missing: dict[str, BootError] = {}
    reached = set(addresses.included)
    for place in addresses.places:
        if place.family == socket.AF_UNIX:
            sockets.add(*_listening_at_path(place, config, identity))
            continue
        try:
            sock = _listening_at(place, port, config)
        except OSError as error:
            problem = _explained(error, place, port, config)
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise problem from None
            missing.setdefault(place.host, problem)
        else:
            sockets.add(sock)
            reached.add(place.host)
            port = sock.address[1]
    for host, problem in missing.items():
        if host not in reached:
            raise problem


def _listening_at(place: _Place, port: int, config: Config) -> ListeningSocket:
    sock = ListeningSocket(place.family, socket.SOCK_STREAM, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if place.family == socket.AF_INET6:
            # "::" means every address, of both families, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        set_timeouts(sock, config)
        sock.bind(place.at(port))
        sock.listen(config.backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _explained(error: OSError, place: _Place, number: int, config: Config) -> BootError:
    name = place.address[0]
    what = f"cannot listen on {format_address(name, number)}"
    port, host = config.source("port"), config.source("host")
    if name != place.host:
        port, host = (f"{source}, {place.host}" for source in (port, host))
    if error.errno == errno.EADDRINUSE:
        return _PortTakenError(
            f"{what} ({port}): the port is already in use; stop its server or choose another"
        )
    if error.errno == errno.EACCES:
        reason = "a port this low needs privileges; choose one from 1024 up"
        return BootError(f"{what} ({port}): {reason}")
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return BootError(f"{what} ({host}): this machine does not have that address")
    return BootError(f"{what} ({port}): {error.strerror}")


# -- UNIX sockets ---------------------------------------------------------------------------------


def _listening_at_path(
    place: _Place, config: Config, identity: Identity | None
) -> tuple[UnixListeningSocket, _SocketFile | None]:
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


def _bind_file(sock: socket.socket, path: str, mode: int, what: str) -> _SocketFile:
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
    return _SocketFile.at(path)


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
                    time.sleep(_GLANCE)
        yield
    finally:
        if fd != -1:
            os.close(fd)


def _give(file: _SocketFile, identity: Identity) -> None:
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


def somaxconn() -> int | None:
    """Return the kernel's cap on the backlog, None where it cannot be told."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:  # noqa: PTH123 - no pathlib for one figure
            return int(file.read())
    except (OSError, ValueError):
        return None
