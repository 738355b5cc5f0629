"""Reading the PROXY headers of connections from balancers, before a client is admitted."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from echoserver.admission import proxy_protocol
from echoserver.lifecycle.main_wait import Lifecycle


@dataclass(slots=True)
class _PendingClient:
    sock: socket.socket
    peer: Any
    deadline: float
    part: bytes = b""
    """The part of the header that has come."""


@dataclass(frozen=True, slots=True)
class HeaderResult:
    """The result for a connection: its header has come, or the wait for it is over."""

    sock: socket.socket
    peer: Any
    """The client's address, or the balancer's own if the connection is the balancer's."""
    problem: str
    """Why the header is unusable; empty: there is no problem."""


class AwaitedHeaders:
    """Reads the PROXY header of each connection, all of them in the server's main flow.

    So a slow balancer delays no other client, whatever the concurrency model. The model is given a
    connection when its header has been read, and not a byte more.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._waiting: dict[int, _PendingClient] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sock: socket.socket, peer: Any, timeout: float) -> HeaderResult | None:
        """Add a connection; return its result at once if its header is there already.

        Args:
            sock: The connection's socket.
            peer: The balancer's address.
            timeout: Seconds that the header may take; 0: no limit.
        """
        client = _PendingClient(sock, peer, time.monotonic() + (timeout or inf))
        result = self._read_header(client)
        if result is None:
            self._waiting[sock.fileno()] = client
            self._lifecycle.watch(sock.fileno())
        return result

    @property
    def next_deadline(self) -> float:
        """When the time of the first connection is over (``monotonic``)."""
        return min((one.deadline for one in self._waiting.values()), default=inf)

    def take_ready(self, ready: set[int]) -> Iterator[HeaderResult]:
        """Yield the results that are ready, and those of connections whose time is over.

        Args:
            ready: Descriptors that are readable.
        """
        now = time.monotonic()
        for fd, client in list(self._waiting.items()):
            result = self._read_header(client) if fd in ready else None
            if result is None and now >= client.deadline:
                result = HeaderResult(
                    client.sock, client.peer, "timed out waiting for the PROXY header"
                )
            if result is not None:
                self._forget(fd)
                yield result

    def take_all(self) -> Iterator[socket.socket]:
        """Yield the sockets that still wait, whose time is over because of the drain."""
        for fd, client in list(self._waiting.items()):
            self._forget(fd)
            yield client.sock

    def _forget(self, fd: int) -> None:
        self._lifecycle.forget(fd)
        del self._waiting[fd]

    def _read_header(self, client: _PendingClient) -> HeaderResult | None:
        """Read what has come of a header, up to its end; None if there is more to come."""
        sock, part = client.sock, client.part
        try:
            data = sock.recv(
                proxy_protocol.MAX_HEADER_BYTES - len(part), socket.MSG_PEEK | socket.MSG_DONTWAIT
            )
            if not data:
                return HeaderResult(sock, client.peer, "connection closed before the PROXY header")
            header = proxy_protocol.parse(part + data)
            sock.recv(header.length - len(part) if header else len(data), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ValueError as error:
            return HeaderResult(sock, client.peer, str(error))
        except OSError as error:
            return HeaderResult(sock, client.peer, error.strerror or str(error))
        if header is None:
            client.part = part + data
            return None
        return HeaderResult(sock, header.source or client.peer, "")
