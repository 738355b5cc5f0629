"""The certificates and keys of a TLS peer, and the authorities it trusts, as PEM texts."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from echoserver.system.files import read_file

_CERTIFICATE, _KEY, _ENCRYPTED = b"CERTIFICATE-----", b"PRIVATE KEY-----", b"ENCRYPTED"


class CredentialsError(ValueError):
    """A PEM text is not usable; the message says why."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(reason)
        self.part = part
        """The text that is not usable: ``cert``, ``key`` or ``ca``."""


def load_identity(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Give a context a certificate and its private key, both as PEM texts.

    Raises:
        CredentialsError: A text is not usable, or the key is encrypted. OpenSSL must not ask for a
            pass phrase at the terminal, because no timeout would end that.
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
    """Yield the name of a file that holds authorities (a PEM text) while the block runs.

    Raises:
        CredentialsError: The text is not usable.
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
    """A server's certificate and key, and the authorities of its clients, as PEM texts.

    They are texts, and not names of files, because the process that makes an SSL context of them
    may no longer be allowed to read the files.
    """

    cert: bytes
    """The server's certificate, and those that lead from it towards an authority."""
    key: bytes
    client_ca: bytes | None = None
    """Authorities, by one of which every client must be certified; None: clients need none."""

    @classmethod
    def read(
        cls, cert: str, key: str | None, client_ca: str | None, *, reload: bool = False
    ) -> Self:
        """Read the files; see `read_file`.

        Raises:
            OSError: A file cannot be read; the error has its name.
        """
        text = read_file(cert, reload=reload)
        return cls(
            text,
            read_file(key, reload=reload) if key else text,
            read_file(client_ca, reload=reload) if client_ca else None,
        )

    def context(self) -> ssl.SSLContext:
        """Return the server's SSL context: TLS 1.2 or later, without renegotiation.

        Raises:
            CredentialsError: A text is not usable.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        # Tickets come after the handshake, whether the client reads or not. A client that closes
        # without sending anything would leave them unread, which makes its close a reset.
        context.num_tickets = 0
        load_identity(context, self.cert, self.key)
        if self.client_ca is not None:
            with authorities(self.client_ca) as file:
                context.load_verify_locations(file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class _file:  # noqa: N801 - used as a function
    """The name of a file in memory with `content`, as `ssl` loads certificates from files only."""

    def __init__(self, content: bytes) -> None:
        self._fd = os.memfd_create("pem")
        os.write(self._fd, content)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _reason(error: Exception) -> str:
    """Return in a few words why OpenSSL rejects a file."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return "its PEM form is broken" if isinstance(error, ssl.SSLError) else str(error)
