"""The blocking client of an echo server, as a library.

::

    with EchoClient("127.0.0.1", 9999) as client:
        assert client.echo(b"hello") == b"hello"
"""

import select
import socket
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from clients.address import connect, server_name

if TYPE_CHECKING:
    from clients.tls import Socket, Trust

CHUNK = 64 * 1024

# A request of this size always fits the socket's buffers, so it can be sent whole before the
# reply is read. Beyond it, client and server could each wait for the other to read first.
SENT_AT_ONCE = 16 * 1024


class ShortReplyError(ConnectionError):
    """The server ended the stream before it had sent back all that it owed."""

    def __init__(self, reply: bytes, owed: int) -> None:
        super().__init__(f"the server closed the connection after {len(reply)} of {owed} bytes")
        self.reply = reply
        """What did come."""
        self.owed = owed
        """How many bytes should have come."""


class EchoClient:
    """A connection to an echo server.

    Args:
        host: Name or address; IPv6 works. A UNIX socket: ``unix:/path`` or ``@name``.
        port: TCP port; 0 for a UNIX socket.
        timeout: Seconds that connecting, or one `echo`, may take; None waits for ever.
        trust: Speak TLS, to a server that this trusts.
        preface: Bytes to send before all else, such as a PROXY header.

    Raises:
        OSError: The connection could not be made (`ConnectionRefusedError`, `TimeoutError`,
            `clients.tls.TlsError`, ...).
    """

    def __init__(
        self,
        host: str,
        port: int,
        timeout: float | None = 10.0,
        trust: "Trust | None" = None,
        preface: bytes = b"",
    ) -> None:
        self.timeout = timeout
        sock = connect(host, port, timeout)
        try:
            sock.sendall(preface)
            self.sock: Socket = sock if trust is None else _secured(sock, trust, host)
        except BaseException:
            sock.close()
            raise

    def echo(self, data: bytes) -> bytes:
        """Send `data` and return as many bytes of reply, however many pieces they come in.

        Raises:
            ShortReplyError: The server closed the connection before.
            TimeoutError: The reply was not complete within the timeout.
            ConnectionResetError: The connection was broken.
        """
        return exchange(self.sock, data, self.timeout)

    def finish(self) -> bytes:
        """Half-close: say that no more will be sent, and return everything that still comes.

        Raises:
            TimeoutError: The server fell silent without closing its side.
        """
        self.sock.shutdown(socket.SHUT_WR)
        self.sock.settimeout(self.timeout)
        pieces = []
        while data := self.sock.recv(CHUNK):
            pieces.append(data)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


def _secured(sock: socket.socket, trust: "Trust", host: str) -> "Socket":
    from clients.tls import TlsSocket  # noqa: PLC0415 - ssl is large

    secured = TlsSocket(sock, trust.context(), server_name(host))
    secured.handshake()
    return secured


def has_pending(sock: "Socket") -> bool:
    """Tell whether TLS has read something from `sock` already, for which it is not readable."""
    return getattr(sock, "pending", False)


def exchange(
    sock: "Socket", data: bytes, timeout: float | None, reply: bytearray | None = None
) -> bytes:
    """Send `data` over `sock` while reading as many bytes back; see `EchoClient.echo`.

    Args:
        sock: A connected socket.
        data: What to send.
        timeout: Seconds for all of it; None waits for ever.
        reply: Empty; holds what has come so far, for callers that watch the progress. Empty again
            at the end.
    """
    reply = bytearray() if reply is None else reply
    deadline = None if timeout is None else time.monotonic() + timeout
    poll = select.poll()
    unsent = memoryview(data)
    while len(reply) < len(data):
        poll.register(sock, select.POLLIN | (select.POLLOUT if unsent else 0))
        left = None if deadline is None else deadline - time.monotonic()
        pending = has_pending(sock)
        ready = poll.poll(0 if pending else None if left is None else max(0.0, left) * 1000)
        if not ready and not pending:
            raise TimeoutError(f"{len(reply)} of {len(data)} bytes came back in {timeout} seconds")
        events = (ready[0][1] if ready else 0) | (select.POLLIN if pending else 0)
        if unsent and events & select.POLLOUT:
            with suppress(BlockingIOError):
                unsent = unsent[sock.send(unsent[:CHUNK], socket.MSG_DONTWAIT) :]
        if events & ~select.POLLOUT:
            try:
                piece = sock.recv(len(data) - len(reply), socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            if not piece:
                raise ShortReplyError(bytes(reply), len(data))
            reply += piece
    complete = bytes(reply)
    reply.clear()
    return complete
