"""TLS over a connected socket, for servers and clients, whether they block or not.

`ssl.SSLSocket` ignores the kernel's timeouts (SO_RCVTIMEO), and its ``shutdown`` leaves ciphertext
behind. The sans-I/O `ssl.SSLObject` between two buffers in memory leaves waiting to the socket, and
ends one direction only: a close_notify is to TLS what a FIN is to TCP (RFC 8446, section 6.1).
"""

import socket
import ssl
import time
from contextlib import suppress

from echoserver.conversation.credentials import Credentials
from echoserver.errors import NoApplicationData, TlsError

_RECORD = 5 + 16 * 1024 + 256  # bytes: the longest record, with its head and what encryption adds

_CHUNK = 16 * 1024

# Answers to a peer that asks for new keys, and reads none of them, are kept up to here.
_MAX_PENDING_OUTPUT = 64 * 1024

# Bytes without content in a row that are put up with: a key update takes as long as a message.
_MAX_NON_APPLICATION_BYTES = 64 * 1024


class TlsServer:
    """Puts TLS over accepted sockets.

    Raises:
        CredentialsError: The credentials are not usable; see `Credentials.context`.
    """

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        """What it was made of."""
        self._context = credentials.context()

    def __call__(self, sock: socket.socket) -> "TlsSocket":
        """Return what speaks TLS over `sock`."""
        return TlsSocket(sock, self._context)


def _failed(error: ssl.SSLError) -> TlsError:
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason += f": {error.verify_message}"
    return TlsError(error.errno, reason)


class TlsSocket:
    """Speaks TLS over `sock`, and can be used in its place: it blocks when `sock` does.

    Args:
        sock: A connected socket, or one that is connecting and does not block.
        context: A client's, or a server's: whom to trust, and who one is.
        name: The server's, as its certificate must have it; for a client.

    Raises:
        TlsError: In all that it does: the peer does not speak TLS, or is not to be trusted.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str = "") -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=context.protocol == ssl.PROTOCOL_TLS_SERVER,
            server_hostname=name or None,
        )
        self.handshake_complete = False
        """The handshake is over."""
        self._ended = self._notified = False
        self._unsent = memoryview(b"")
        self._rest = b""
        self._accepted = 0
        self._non_application_bytes = 0
        self.heard = time.monotonic()
        """When content came last (``monotonic``)."""
        self.raise_on_no_data = False
        """`recv` raises `NoApplicationData` where it waited, and TLS had nothing to return."""
        self.touched = False
        """The peer has sent something."""
        self.truncated = False
        """The peer's stream ended without a close_notify: perhaps not where the peer ended it."""
        self.family = sock.family
        self.fileno = sock.fileno
        self.setblocking = sock.setblocking
        self.settimeout = sock.settimeout
        self.getpeername = sock.getpeername

    @property
    def blocked(self) -> bool:
        """There is something to be sent for which the socket had no room."""
        return bool(self._unsent)

    @property
    def pending(self) -> bool:
        """`recv` has something to return or to raise of what was read from the socket already.

        The socket is not readable for it. So who waits for readability asks this first: a record
        can have come together with the next one, with the handshake, or with the end.
        """
        return self._ended or bool(self._rest or self._incoming.pending)

    def handshake(self, flags: int = 0) -> None:
        """Greet, and be handshake_complete; the first `send` or `recv` does it where nobody has.

        Args:
            flags: Of recv(2), such as MSG_DONTWAIT.

        Raises:
            BlockingIOError: It takes longer.
            ConnectionResetError: The peer ended it.
        """
        if self.handshake_complete:
            return
        self._flush()
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                if not self._feed(_RECORD, flags):
                    raise ConnectionResetError(0, "the TLS handshake was broken off") from None
            except ssl.SSLError as error:
                with suppress(OSError):
                    self._flush()  # the alert that tells the peer why
                raise _failed(error) from None
        self.handshake_complete = True
        self._flush()

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Return how much of `data` was taken to be sent.

        Where that is not all, or it raises BlockingIOError, it must be called again with the rest,
        and with no other data, as SSL_write(3) must.
        """
        self.handshake(flags)
        taken = 0
        try:
            while taken < len(data):
                if not self._accepted:
                    self._flush(flags)
                    self._accepted = self._tls.write(data[taken : taken + _CHUNK])
                self._flush(flags)
                taken += self._accepted
                self._accepted = 0
        except BlockingIOError:
            if not taken:
                raise
        except ssl.SSLError as error:
            raise _failed(error) from None
        return taken

    def sendall(self, data: bytes) -> None:
        """Send all of it, where the socket blocks."""
        unsent = memoryview(data)
        while unsent:
            unsent = unsent[self.send(unsent) :]

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return content of one record, waiting for it where the socket blocks; b"" at the end.

        Of one record, although more may have come: if the next one cannot be decrypted, TLS is over
        in both directions, and what came before it could not be answered any more. `pending` tells
        whether there is more.

        Args:
            size: The most to return.
            flags: Of recv(2), such as MSG_DONTWAIT.
        """
        self.handshake(flags)
        fed = 0
        while True:
            data = self._rest or self._decrypt()
            if self._outgoing.pending:
                self._send_protocol_output(flags)
            if data or self._ended:
                self._non_application_bytes, self.heard = 0, time.monotonic()
                # Not left to SSL_read(3), which loses the rest of a record where our end is said.
                self._rest = data[size:]
                return data[:size]
            self._non_application_bytes += fed
            if self._non_application_bytes > _MAX_NON_APPLICATION_BYTES:
                raise TlsError(0, "too much TLS data without application data")
            if fed and self.raise_on_no_data:
                raise NoApplicationData
            fed = self._feed(max(size, _RECORD), flags)
            if not fed:
                self._ended = self.truncated = True

    def _decrypt(self) -> bytes:
        """Return what the next record holds, b"" where there is none, or not all of one."""
        if self._ended or not self._incoming.pending:
            return b""
        try:
            data = self._tls.read(_RECORD)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLError as error:
            raise _failed(error) from None
        self._ended = not data
        return data

    def shutdown(self, how: int) -> None:
        """Say close_notify, and half-close."""
        self.close_notify()
        self._sock.shutdown(how)

    def close_notify(self, flags: int = 0) -> None:
        """End our direction of the stream, as far as TLS knows of it.

        Raises:
            BlockingIOError: There is no room for it yet: call it again.
        """
        self._flush(flags)
        if self.handshake_complete and not self._notified:
            self._notified = True
            # It reads, too, and would take for itself what has come and is `recv`'s to return: a
            # record, or the peer's end.
            unread = self._incoming.read()
            with suppress(ssl.SSLError):  # it wants the peer's end, for which nobody waits here
                self._tls.unwrap()
            self._incoming.write(unread)
            self._flush(flags)

    def close(self) -> None:
        """Leave: with a close_notify, as far as there is room for it at once."""
        with suppress(OSError):
            self._sock.setblocking(False)  # by a timeout, Python would wait for room
            self.close_notify()
        self._sock.close()

    def _send_protocol_output(self, flags: int) -> None:
        """Send what TLS itself has to say, such as a key update; later, where there is no room."""
        with suppress(BlockingIOError):
            self._flush(flags)
        if self._outgoing.pending > _MAX_PENDING_OUTPUT:
            raise TlsError(0, "peer keeps requesting key updates without reading the replies")

    def _feed(self, size: int, flags: int = 0) -> int:
        """Take in what has come; return how much that was, 0 at the end of the stream."""
        data = self._sock.recv(size, flags)
        if data:
            self.touched = True
            self._incoming.write(data)
        return len(data)

    def _flush(self, flags: int = 0) -> None:
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            self._unsent = self._unsent[self._sock.send(self._unsent, flags) :]


Socket = socket.socket | TlsSocket
