"""Whom a client that speaks TLS trusts, and who it says it is."""

import ssl
from dataclasses import dataclass

from echoserver.conversation.credentials import CredentialsError, authorities, load_identity
from echoserver.conversation.tls import Socket, TlsSocket
from echoserver.errors import TlsError
from echoserver.system.files import read_file

__all__ = ["CredentialsError", "Socket", "TlsError", "TlsSocket", "Trust", "explain"]

_ALERT = b"\x15\x03"  # the record with which a server of TLS answers what is none (RFC 8446, 5.1)
_NO_TLS = {"WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG"}
_ASKS = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}


def explain(error: OSError) -> str:
    """Say what went wrong with a connection, and what to do about it."""
    reason = error.strerror or str(error)
    if not isinstance(error, TlsError):
        said = getattr(error, "reply", None)
        if said is not None and said[:2] == _ALERT[: len(said)]:
            reason += "; where it speaks TLS, add --tls"
        return f"did not answer: {reason}"
    what, _, why = reason.partition(": ")
    if what == "CERTIFICATE_VERIFY_FAILED":
        return f"has no certificate to be trusted ({why}); name who signed it with --ca"
    if what in _NO_TLS:
        return "does not speak TLS; leave out --tls"
    if what in _ASKS:
        return "asks for a client's certificate; add --cert"
    return f"and TLS did not come about: {reason.lower().replace('_', ' ')}"


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
            OSError: A file cannot be read, or only without an end; it has the name.
            CredentialsError: A file is not what it should be, or its key is encrypted.
        """
        if self.ca is None:
            context = ssl.create_default_context()
        else:
            with authorities(read_file(self.ca)) as file:
                context = ssl.create_default_context(cafile=file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert:
            cert, key = (read_file(file) for file in (self.cert, self.key or self.cert))
            load_identity(context, cert, key)
        return context
