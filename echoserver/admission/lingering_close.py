"""Connections that are turned away: closed so that the peer sees the end, and not a reset."""

import socket
import time
from contextlib import suppress
from math import inf

from echoserver.conversation.closing import LINGER
from echoserver.conversation.exchange import CHUNK
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.system.sockets import reset_on_close

_MAX_CONNECTIONS = 64


class LingeringClose:
    """Closes connections as nginx's ``lingering_close`` does, in the server's main flow.

    A close while something is unread makes the kernel send a reset (RFC 1122, 4.2.2.13). So a
    FIN is sent, and nothing else. What the peer still sends is discarded until its own FIN comes,
    for a second at most. Connections beyond 64 at a time are reset.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._closing: dict[int, tuple[socket.socket, float]] = {}

    def __len__(self) -> int:
        return len(self._closing)

    def close_gently(self, sock: socket.socket) -> None:
        """Close a connection to which nothing was sent."""
        if len(self._closing) >= _MAX_CONNECTIONS:
            reset_on_close(sock)
            sock.close()
            return
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.setblocking(False)
        self._closing[sock.fileno()] = (sock, time.monotonic() + LINGER)
        self._lifecycle.watch(sock.fileno())

    @property
    def next_deadline(self) -> float:
        """When the time of the first connection is over (``monotonic``)."""
        return min((deadline for _, deadline in self._closing.values()), default=inf)

    def close_finished(self, ready: set[int]) -> None:
        """Close the connections whose peer has ended its stream, or whose time is over.

        Args:
            ready: Descriptors that are readable.
        """
        now = time.monotonic()
        for fd, (sock, deadline) in list(self._closing.items()):
            is_over = now >= deadline
            if fd in ready and not is_over:
                try:
                    is_over = not sock.recv(CHUNK)
                except BlockingIOError:
                    pass
                except OSError:
                    is_over = True
            if is_over:
                self._close(fd)

    def close_all(self) -> None:
        """Close the remaining connections."""
        for fd in list(self._closing):
            self._close(fd)

    def _close(self, fd: int) -> None:
        sock, _ = self._closing.pop(fd)
        self._lifecycle.forget(fd)
        sock.close()
