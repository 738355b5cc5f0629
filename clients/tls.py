"""TLS over a connected socket, for clients that block and for clients that do not.

`ssl.SSLSocket` ignores the kernel's timeouts and cannot half-close; the sans-I/O `ssl.SSLObject`
between two memory buffers leaves both to the socket (RFC 8446, section 6.1: close_notify ends one
direction only).
"""

import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.workload import Workload

_RECORD = 16 * 1024 + 256  # bytes: the longest record, with what encryption adds
_CHUNK = 16 * 1024


def client_context(workload: "Workload") -> ssl.SSLContext:
    """Return how a workload wants to be secured: TLS 1.2 or later, the server's name verified.

    Raises:
        OSError: A file cannot be read, or is not what it should be (`ssl.SSLError`).
    """
    context = ssl.create_default_context(cafile=workload.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if workload.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if workload.cert:
        context.load_cert_chain(workload.cert, workload.key)
    return context


class TlsSocket:
    """Speaks TLS over `sock`, and can be used in its place: it blocks when `sock` does.

    Args:
        sock: A connected socket, or one that is connecting and does not block.
        context: Whom to trust.
        name: The server's name, as its certificate must have it.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._greeted = False
        self._unsent = memoryview(b"")
        self._accepted = 0
        self.family = sock.family
        self.fileno = sock.fileno
        self.close = sock.close
        self.setblocking = sock.setblocking
        self.settimeout = sock.settimeout
        self.getpeername = sock.getpeername

    def handshake(self) -> None:
        """Greet, and be greeted; the first `send` or `recv` does it where nobody has.

        Raises:
            ssl.SSLError: The server's certificate is not to be trusted, or it speaks no TLS.
            BlockingIOError: It takes longer.
            ConnectionResetError: The server ended it.
        """
        while not self._greeted:
            try:
                self._tls.do_handshake()
                self._greeted = True
            except ssl.SSLWantReadError:
                self._flush()
                if not self._feed(_RECORD):
                    raise ConnectionResetError(0, "the server ended the TLS handshake") from None
        self._flush()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Return how much of `data` was taken to be sent.

        Where it raises BlockingIOError it must be called again with the same, as SSL_write(3) must.
        """
        self.handshake()
        if not self._accepted:
            self._accepted = self._tls.write(data[:_CHUNK])
        self._flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def sendall(self, data: bytes) -> None:
        """Send all of it, where the socket blocks."""
        unsent = memoryview(data)
        while unsent:
            unsent = unsent[self.send(unsent) :]

    def recv(self, size: int) -> bytes:
        """Return all that has come, waiting for some where the socket blocks; b"" at the end.

        Args:
            size: About how much to expect; what is decrypted already is never left behind, because
                no readiness loop would tell of it.
        """
        self.handshake()
        pieces = []
        while True:
            try:
                while piece := self._tls.read(max(size, _CHUNK)):
                    pieces.append(piece)
            except ssl.SSLWantReadError:
                self._flush()  # an answer to what was no data, such as a key update
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                pass
            if pieces:
                return b"".join(pieces)
            if not self._feed(max(size, _RECORD)):
                return b""

    def shutdown(self, how: int) -> None:
        """Say close_notify, and half-close."""
        with suppress(ssl.SSLError):  # it wants the server's, for which nobody waits here
            self._tls.unwrap()
        self._flush()
        self._sock.shutdown(how)

    def _feed(self, size: int) -> bool:
        """Take in what has come; tell whether it is not the end."""
        data = self._sock.recv(size)
        if data:
            self._incoming.write(data)
        return bool(data)

    def _flush(self) -> None:
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            self._unsent = self._unsent[self._sock.send(self._unsent) :]


Socket = socket.socket | TlsSocket
