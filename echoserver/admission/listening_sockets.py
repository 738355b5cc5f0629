"""The sockets that a server listens on, TCP and UNIX, and the files of the latter."""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from echoserver.addresses import UNIX, format_address, unix_host
from echoserver.config import Config
from echoserver.conversation.exchange import write_patience
from echoserver.system.sock_diag import unix_accept_queue
from echoserver.system.sockets import accept_queue, set_timeout

_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group (unix(7))


class ListeningSocket(socket.socket):
    """A listening TCP socket, which knows its family and its type.

    `socket.socket` looks both up in enumerations at every ``accept``, which takes a third of the
    time of that call.
    """

    family = socket.AF_UNSPEC
    type = socket.SOCK_STREAM
    passes_options_on = True
    """Whether the connections that it accepts inherit its options."""

    def __init__(self, family: int, kind: int, protocol: int, fd: int | None = None) -> None:
        super().__init__(family, kind, protocol, fd)
        self.family = socket.AddressFamily(family)

    @property
    def address(self) -> tuple[str, int]:
        """The socket's host and port."""
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
        # Reading the queue's length takes a descriptor, and clients may hold all the others.
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a client; return its socket, and its process and user when it connected."""
        sock, _ = super().accept()
        size = _CREDENTIALS.size
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        process, user, _ = _CREDENTIALS.unpack(credentials)
        return sock, (f"{UNIX}pid={process},uid={user}", 0)

    @property
    def address(self) -> tuple[str, int]:
        """The socket's host, and 0 for a port."""
        return unix_host(self.getsockname()), 0

    def queue(self) -> tuple[int, int]:
        """Return how many clients wait to be accepted, and how many may; 0 if it is not known."""
        self._close_spare()
        try:
            return unix_accept_queue(self)
        except OSError:
            return 0, 0
        finally:
            with suppress(OSError):  # a client may hold the last one now
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the socket, and the spare descriptor."""
        self._close_spare()
        super().close()

    def _close_spare(self) -> None:
        if self._spare != -1:
            os.close(self._spare)
            self._spare = -1


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The file of a UNIX socket that was bound here."""

    path: str
    identity: tuple[int, int, int]

    @staticmethod
    def identity_of(status: os.stat_result) -> tuple[int, int, int]:
        """Return what identifies a file; an inode number alone is reused after a removal."""
        return status.st_dev, status.st_ino, status.st_mtime_ns

    @classmethod
    def at(cls, path: str) -> Self:
        """Return the file at a path."""
        return cls(path, cls.identity_of(os.lstat(path)))

    def remove(self) -> None:
        """Remove the file, unless another one has taken its place."""
        with suppress(OSError):
            if self.identity_of(os.lstat(self.path)) == self.identity:
                Path(self.path).unlink()


class ListeningSockets:
    """All sockets that a server listens on, of which there is one at least.

    Args:
        sockets: Sockets that listen already.
        from_service_manager: The sockets belong to a service manager: they outlive this server, and
            so do the clients in their queues.
    """

    def __init__(
        self, sockets: Sequence[ListeningSocket] = (), *, from_service_manager: bool = False
    ) -> None:
        self._sockets = list(sockets)
        self._files: list[SocketFile] = []
        self._owner_pid = os.getpid()
        self.from_service_manager = from_service_manager

    def __iter__(self) -> Iterator[ListeningSocket]:
        return iter(self._sockets)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The host and port of each socket."""
        return [sock.address for sock in self._sockets]

    @property
    def display_addresses(self) -> list[str]:
        """The addresses of the sockets, as people read them."""
        return [format_address(*address) for address in self.addresses]

    def add(self, sock: ListeningSocket, file: SocketFile | None = None) -> None:
        """Add a socket, with its file if it has one."""
        self._sockets.append(sock)
        if file is not None:
            self._files.append(file)

    def set_timeouts(self, config: Config) -> None:
        """Set the timeouts that connections accepted from now on inherit."""
        for sock in self._sockets:
            set_timeouts(sock, config)

    def queue(self) -> tuple[int, int]:
        """Return how many clients wait to be accepted, and how many may, in all queues."""
        waiting, limits = zip(*(sock.queue() for sock in self._sockets), strict=True)
        return sum(waiting), sum(limits)

    def remove_files(self) -> None:
        """Remove the UNIX sockets' files that this process made, so that no more clients come."""
        if os.getpid() == self._owner_pid:
            while self._files:
                self._files.pop().remove()

    def close(self) -> None:
        """Close this process's copies of the sockets, and remove their files."""
        self.remove_files()
        for sock in self._sockets:
            sock.close()


def set_timeouts(sock: socket.socket, config: Config) -> None:
    """Set the timeouts that blocking drivers leave to the kernel, on a connection or a listener."""
    set_timeout(sock, socket.SO_RCVTIMEO, config.idle_timeout)
    set_timeout(sock, socket.SO_SNDTIMEO, write_patience(config.write_timeout))
