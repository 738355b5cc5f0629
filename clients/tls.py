"""Whom a client that speaks TLS trusts, and who it says it is."""

import ssl
from dataclasses import dataclass

from echoserver.errors import TlsError
from echoserver.tls import Socket, TlsSocket

__all__ = ["Socket", "TlsError", "TlsSocket", "Trust"]


@dataclass(frozen=True, slots=True)
class Trust:
    """Which servers a client trusts."""

    ca: str | None = None
    """A file of certificates to trust; None: those that the system trusts."""
    cert: str | None = None
    """A file with the client's own certificate, where a server asks for one."""
    key: str | None = None
    """The file with its key; None: it is in the same file."""
    insecure: bool = False
    """Accept any certificate."""

    def context(self) -> ssl.SSLContext:
        """Return how to speak: TLS 1.2 or later, the server's name verified.

        Raises:
            OSError: A file cannot be read, or is not what it should be (`ssl.SSLError`).
        """
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context
