"""Connections that are turned away: closed so that the peer sees the end, and not a reset."""

import socket
import time
from contextlib import suppress
from math import inf

from echoserver.conversation.closing import LINGER
from echoserver.conversation.exchange import CHUNK
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.system.sockets import abort

_MOST = 64


class Lingering:
    """Closes connections as nginx's ``lingering_close`` does, in the server's main flow.

    A close while something is unread makes the kernel send a reset (RFC 1122, 4.2.2.13). So a
    FIN is sent, and nothing else; what the peer still says is thrown away until its own end comes,
    for a second at most. Those beyond 64 at a time are reset.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._closing: dict[int, tuple[socket.socket, float]] = {}

    def __len__(self) -> int:
        return len(self._closing)

    def close_gently(self, sock: socket.socket) -> None:
        """End a connection that nothing was sent to."""
        if len(self._closing) >= _MOST:
            abort(sock)
            sock.close()
            return
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.setblocking(False)
        self._closing[sock.fileno()] = (sock, time.monotonic() + LINGER)
        self._lifecycle.watch(sock.fileno())

    @property
    def next_deadline(self) -> float:
        """When the first one's time is over (``monotonic``)."""
        return min((deadline for _, deadline in self._closing.values()), default=inf)

    def look_at(self, ready: set[int]) -> None:
        """Close those whose peer has ended, or whose time is over.

        Args:
            ready: Descriptors that are readable.
        """
        now = time.monotonic()
        for fd, (sock, deadline) in list(self._closing.items()):
            over = now >= deadline
            if fd in ready and not over:
                try:
                    over = not sock.recv(CHUNK)
                except BlockingIOError:
                    pass
                except OSError:
                    over = True
            if over:
                self._close(fd)

    def close_all(self) -> None:
        """Close those that are left."""
        for fd in list(self._closing):
            self._close(fd)

    def _close(self, fd: int) -> None:
        sock, _ = self._closing.pop(fd)
        self._lifecycle.forget(fd)
        sock.close()
