"""TLS over a connected socket, for servers and clients, whether they block or not.

`ssl.SSLSocket` ignores the kernel's timeouts (SO_RCVTIMEO), and its ``shutdown`` leaves ciphertext
behind. The sans-I/O `ssl.SSLObject` between two buffers in memory leaves waiting to the socket, and
ends one direction only: a close_notify is to TLS what a FIN is to TCP (RFC 8446, section 6.1).
"""

import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from echoserver.errors import NoContentError, TlsError
from echoserver.system.files import read_file

_RECORD = 5 + 16 * 1024 + 256  # bytes: the longest record, with its head and what encryption adds
_CHUNK = 16 * 1024

# Answers to a peer that asks for new keys, and reads none of them, are kept up to here.
_MOST_KEPT = 64 * 1024

# Bytes without content in a row that are put up with: a key update takes as long as a message.
_MOST_IN_VAIN = 64 * 1024


_CERTIFICATE, _KEY, _ENCRYPTED = b"CERTIFICATE-----", b"PRIVATE KEY-----", b"ENCRYPTED"


class CredentialsError(ValueError):
    """A PEM text is not what it should be; the message says what it is instead."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(reason)
        self.part = part
        """Which one it is: ``cert``, ``key`` or ``ca``."""


def load_identity(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Give a context a certificate and its private key, both as PEM texts.

    Raises:
        CredentialsError: A text is not what it should be, or the key is encrypted: nobody is asked
            for a pass phrase, least of all at the terminal, where no timeout would hold.
    """
    if _CERTIFICATE not in cert:
        raise CredentialsError("cert", "it holds no certificate in PEM form")
    if _KEY not in key:
        raise CredentialsError("key", "it holds no private key in PEM form")
    if _ENCRYPTED in key:
        raise CredentialsError(
            "key", "its private key is encrypted; decrypt it with: openssl pkey -in FILE"
        )
    try:
        with _file(cert) as cert_file, _file(key) as key_file:
            context.load_cert_chain(cert_file, key_file, password=b"")
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise CredentialsError("key", "its private key is not the certificate's") from None
        raise CredentialsError("cert", _reason(error)) from None


@contextmanager
def authorities(pem: bytes) -> Iterator[str]:
    """Yield the name of a file with authorities, a PEM text, for what loads them in the block.

    Raises:
        CredentialsError: The text is not what it should be.
    """
    if _CERTIFICATE not in pem:
        raise CredentialsError("ca", "it holds no certificate in PEM form")
    try:
        with _file(pem) as file:
            yield file
    except (OSError, ValueError) as error:
        raise CredentialsError("ca", _reason(error)) from None


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who a server is, and whose clients it takes: PEM texts.

    They are texts, and not names of files, because whoever makes a context of them may no longer
    be allowed to read the files.
    """

    cert: bytes
    """Its certificate, and those that lead from it towards an authority."""
    key: bytes
    client_ca: bytes | None = None
    """Authorities, of which every client must have a certificate; None: clients need none."""

    @classmethod
    def read(
        cls, cert: str, key: str | None, client_ca: str | None, *, reload: bool = False
    ) -> Self:
        """Read the files; see `read_file`.

        Raises:
            OSError: One cannot be read; it has the name.
        """
        text = read_file(cert, reload=reload)
        return cls(
            text,
            read_file(key, reload=reload) if key else text,
            read_file(client_ca, reload=reload) if client_ca else None,
        )

    def context(self) -> ssl.SSLContext:
        """Return how a server with these speaks: TLS 1.2 or later, without renegotiation.

        Raises:
            CredentialsError: A text is not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        # Tickets come after the handshake, whether the client reads or not: where it leaves
        # without a word, they would be unread, and its close a reset.
        context.num_tickets = 0
        load_identity(context, self.cert, self.key)
        if self.client_ca is not None:
            with authorities(self.client_ca) as file:
                context.load_verify_locations(file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


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


class _file:  # noqa: N801 - used as a function
    """The name of a file in memory with `content`: OpenSSL's wrapper takes nothing else."""

    def __init__(self, content: bytes) -> None:
        self._fd = os.memfd_create("pem")
        os.write(self._fd, content)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _reason(error: Exception) -> str:
    """Say in a few words what OpenSSL has against a file."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return "its PEM form is broken" if isinstance(error, ssl.SSLError) else str(error)


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
        self.greeted = False
        """The handshake is over."""
        self._ended = self._notified = False
        self._unsent = memoryview(b"")
        self._rest = b""
        self._accepted = 0
        self._in_vain = 0
        self.heard = time.monotonic()
        """When content came last (``monotonic``)."""
        self.comes_back = False
        """`recv` raises `NoContentError` where it waited for something, and that was no content."""
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
        """Greet, and be greeted; the first `send` or `recv` does it where nobody has.

        Args:
            flags: Of recv(2), such as MSG_DONTWAIT.

        Raises:
            BlockingIOError: It takes longer.
            ConnectionResetError: The peer ended it.
        """
        if self.greeted:
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
        self.greeted = True
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
                self._answer_in_passing(flags)
            if data or self._ended:
                self._in_vain, self.heard = 0, time.monotonic()
                # Not left to SSL_read(3), which loses the rest of a record where our end is said.
                self._rest = data[size:]
                return data[:size]
            self._in_vain += fed
            if self._in_vain > _MOST_IN_VAIN:
                raise TlsError(0, "it sends without end what is no content")
            if fed and self.comes_back:
                raise NoContentError
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
        if self.greeted and not self._notified:
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

    def _answer_in_passing(self, flags: int) -> None:
        """Send what TLS itself has to say, such as a key update; later, where there is no room."""
        with suppress(BlockingIOError):
            self._flush(flags)
        if self._outgoing.pending > _MOST_KEPT:
            raise TlsError(0, "it asks without end for what it does not read")

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
