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

# The longest record, with its header and what encryption adds.
_MAX_RECORD_BYTES = 5 + 16 * 1024 + 256

_CHUNK = 16 * 1024

# Replies to a peer that requests key updates, and does not read the replies, are kept up to here.
_MAX_PENDING_OUTPUT = 64 * 1024

# Bytes without application data in a row that are tolerated: a key update costs as much time as a
# message.
_MAX_NON_APPLICATION_BYTES = 64 * 1024


class TlsServer:
    """Puts TLS over accepted sockets.

    Raises:
        CredentialsError: The credentials are not usable; see `Credentials.context`.
    """

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        """The certificate, key and authorities of this server."""
        self._context = credentials.context()

    def __call__(self, sock: socket.socket) -> "TlsSocket":
        """Return what speaks TLS over `sock`."""
        return TlsSocket(sock, self._context)


def _tls_error(error: ssl.SSLError) -> TlsError:
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason += f": {error.verify_message}"
    return TlsError(error.errno, reason)


class TlsSocket:
    """Speaks TLS over `sock`, and can be used in its place: it blocks when `sock` does.

    Args:
        sock: A connected socket, or one that is connecting and does not block.
        context: A client's or a server's context: its certificate, and the authorities it trusts.
        name: For a client: the name that the server's certificate must have.

    Raises:
        TlsError: By every method: the peer does not speak TLS, or is not to be trusted.
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
        """Whether the handshake is complete."""
        self._at_end = self._has_sent_close_notify = False
        self._unsent = memoryview(b"")
        self._rest = b""
        self._write_size = 0
        self._non_application_bytes = 0
        self.last_data_time = time.monotonic()
        """When application data came last (``monotonic``)."""
        self.raise_on_no_data = False
        """Whether `recv` raises `NoApplicationData` if it waited, and no application data came."""
        self.peer_has_sent = False
        """Whether the peer has sent anything."""
        self.truncated = False
        """Whether the stream ended without a close_notify, and so perhaps before the peer's end."""
        self.family = sock.family
        self.fileno = sock.fileno
        self.setblocking = sock.setblocking
        self.settimeout = sock.settimeout
        self.getpeername = sock.getpeername

    @property
    def blocked(self) -> bool:
        """Whether there is output for which the socket had no room."""
        return bool(self._unsent)

    @property
    def pending(self) -> bool:
        """Whether `recv` has a result, or an error, of data that was already read from the socket.

        The socket is not readable for that data, which may have come together with the handshake
        or with an earlier record. So check this before waiting until the socket is readable.
        """
        return self._at_end or bool(self._rest or self._incoming.pending)

    def handshake(self, flags: int = 0) -> None:
        """Do the TLS handshake; otherwise the first `send` or `recv` does it.

        Args:
            flags: Flags of recv(2), such as MSG_DONTWAIT.

        Raises:
            BlockingIOError: The handshake takes longer: call this again.
            ConnectionResetError: The peer ended the stream.
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
                if not self._feed(_MAX_RECORD_BYTES, flags):
                    raise ConnectionResetError(0, "the TLS handshake was broken off") from None
            except ssl.SSLError as error:
                with suppress(OSError):
                    self._flush()  # the alert that tells the peer why
                raise _tls_error(error) from None
        self.handshake_complete = True
        self._flush()

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Return how much of `data` was accepted for sending.

        If that is not all, or this raises BlockingIOError, call it again with the rest, and with
        no other data, as with SSL_write(3).
        """
        self.handshake(flags)
        sent_bytes = 0
        try:
            while sent_bytes < len(data):
                if not self._write_size:
                    self._flush(flags)
                    self._write_size = self._tls.write(data[sent_bytes : sent_bytes + _CHUNK])
                self._flush(flags)
                sent_bytes += self._write_size
                self._write_size = 0
        except BlockingIOError:
            if not sent_bytes:
                raise
        except ssl.SSLError as error:
            raise _tls_error(error) from None
        return sent_bytes

    def sendall(self, data: bytes) -> None:
        """Send all of `data`, on a socket that blocks."""
        unsent = memoryview(data)
        while unsent:
            unsent = unsent[self.send(unsent) :]

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return data of one record, waiting for it if the socket blocks; b"" at the end.

        More records may have come, but if the next one cannot be decrypted, TLS is over in both
        directions, and the data before it could not be answered any more. `pending` tells whether
        there is more.

        Args:
            size: The most bytes to return.
            flags: Flags of recv(2), such as MSG_DONTWAIT.
        """
        self.handshake(flags)
        input_size = 0
        while True:
            data = self._rest or self._decrypt()
            if self._outgoing.pending:
                self._send_protocol_output(flags)
            if data or self._at_end:
                self._non_application_bytes, self.last_data_time = 0, time.monotonic()
                # Not by SSL_read(3), which loses the rest of a record after our close_notify.
                self._rest = data[size:]
                return data[:size]
            self._non_application_bytes += input_size
            if self._non_application_bytes > _MAX_NON_APPLICATION_BYTES:
                raise TlsError(0, "too much TLS data without application data")
            if input_size and self.raise_on_no_data:
                raise NoApplicationData
            input_size = self._feed(max(size, _MAX_RECORD_BYTES), flags)
            if not input_size:
                self._at_end = self.truncated = True

    def _decrypt(self) -> bytes:
        """Return the data of the next record; b"" if no whole record has come."""
        if self._at_end or not self._incoming.pending:
            return b""
        try:
            data = self._tls.read(_MAX_RECORD_BYTES)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLError as error:
            raise _tls_error(error) from None
        self._at_end = not data
        return data

    def shutdown(self, how: int) -> None:
        """Send close_notify, and shut down the socket."""
        self.close_notify()
        self._sock.shutdown(how)

    def close_notify(self, flags: int = 0) -> None:
        """Send close_notify, which ends our direction of the TLS stream.

        Raises:
            BlockingIOError: There is no room for it yet: call this again.
        """
        self._flush(flags)
        if self.handshake_complete and not self._has_sent_close_notify:
            self._has_sent_close_notify = True
            # `unwrap` reads, too, and would swallow what `recv` has to return: a record that has
            # come, or the peer's close_notify.
            unread = self._incoming.read()
            with suppress(ssl.SSLError):  # it wants the peer's close_notify, too
                self._tls.unwrap()
            self._incoming.write(unread)
            self._flush(flags)

    def close(self) -> None:
        """Send close_notify if there is room for it at once, and close the socket."""
        with suppress(OSError):
            self._sock.setblocking(False)  # with a timeout, Python would wait for room
            self.close_notify()
        self._sock.close()

    def _send_protocol_output(self, flags: int) -> None:
        """Send TLS's own messages, such as a key update, or keep them if there is no room."""
        with suppress(BlockingIOError):
            self._flush(flags)
        if self._outgoing.pending > _MAX_PENDING_OUTPUT:
            raise TlsError(0, "peer keeps requesting key updates without reading the replies")

    def _feed(self, size: int, flags: int = 0) -> int:
        """Read what has come into TLS's buffer; return its size, 0 at the end of the stream."""
        data = self._sock.recv(size, flags)
        if data:
            self.peer_has_sent = True
            self._incoming.write(data)
        return len(data)

    def _flush(self, flags: int = 0) -> None:
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            self._unsent = self._unsent[self._sock.send(self._unsent, flags) :]


Socket = socket.socket | TlsSocket
