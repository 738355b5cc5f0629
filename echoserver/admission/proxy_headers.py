"""Where connections that a balancer passes on wait until it is known whose they are."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from echoserver.admission import proxy_protocol
from echoserver.lifecycle.main_wait import Lifecycle


@dataclass(slots=True)
class _Awaited:
    sock: socket.socket
    peer: Any
    deadline: float
    begun: bytes = b""
    """What has come of the header."""


@dataclass(frozen=True, slots=True)
class Identified:
    """A connection whose header has come, or never will."""

    sock: socket.socket
    peer: Any
    """Whose it is: the client's address, or the balancer's own where that says so."""
    problem: str
    """Why it cannot be told; empty: it can."""


class AwaitedHeaders:
    """Reads the PROXY header of each connection, all of them in the server's main flow.

    So a balancer that is in no hurry holds nobody up, whatever the concurrency model, which is
    given a connection when its header has been read, and not a byte more.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._waiting: dict[int, _Awaited] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, sock: socket.socket, peer: Any, patience: float) -> Identified | None:
        """Take in a connection; return it at once where its header is there already.

        Args:
            sock: Its socket.
            peer: The balancer.
            patience: Seconds that the header may take; 0: as long as it takes.
        """
        client = _Awaited(sock, peer, time.monotonic() + (patience or inf))
        identified = self._look_at(client)
        if identified is None:
            self._waiting[sock.fileno()] = client
            self._lifecycle.watch(sock.fileno())
        return identified

    @property
    def next_deadline(self) -> float:
        """When the first one's time is over (``monotonic``)."""
        return min((one.deadline for one in self._waiting.values()), default=inf)

    def leave(self, ready: set[int]) -> Iterator[Identified]:
        """Yield those that can be told, or whose time is over.

        Args:
            ready: Descriptors that are readable.
        """
        now = time.monotonic()
        for fd, client in list(self._waiting.items()):
            identified = self._look_at(client) if fd in ready else None
            if identified is None and now >= client.deadline:
                identified = Identified(
                    client.sock, client.peer, "timed out waiting for the PROXY header"
                )
            if identified is not None:
                self._forget(fd)
                yield identified

    def empty(self) -> Iterator[socket.socket]:
        """Yield those that are left: their time is over."""
        for fd, client in list(self._waiting.items()):
            self._forget(fd)
            yield client.sock

    def _forget(self, fd: int) -> None:
        self._lifecycle.forget(fd)
        del self._waiting[fd]

    def _look_at(self, client: _Awaited) -> Identified | None:
        """Read what has come of a header, up to its end."""
        sock, begun = client.sock, client.begun
        try:
            data = sock.recv(
                proxy_protocol.LONGEST - len(begun), socket.MSG_PEEK | socket.MSG_DONTWAIT
            )
            if not data:
                return Identified(sock, client.peer, "connection closed before the PROXY header")
            header = proxy_protocol.parse(begun + data)
            sock.recv(header.length - len(begun) if header else len(data), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ValueError as error:
            return Identified(sock, client.peer, str(error))
        except OSError as error:
            return Identified(sock, client.peer, error.strerror or str(error))
        if header is None:
            client.begun = begun + data
            return None
        return Identified(sock, header.source or client.peer, "")
