"""Certificates for the length of a test run."""

import datetime as dt
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import trustme

_LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Authority:
    """Who signs certificates."""

    name: str

    @property
    def cert(self) -> str:
        """The file of its own."""
        file = _folder() / f"{self.name}.pem"
        _authority(self.name).cert_pem.write_to_path(file)
        return str(file)

    def issue(self, *, expired: bool = False) -> str:
        """Return a file with a certificate for 127.0.0.1, and its key."""
        return _issued(self.name, expired=expired)


SERVERS = Authority("servers")
CLIENTS = Authority("clients")
STRANGERS = Authority("strangers")


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="echoserver-tls-"))


@cache
def _authority(_name: str) -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@cache
def _issued(name: str, *, expired: bool) -> str:
    until = _LONG_AGO + dt.timedelta(days=1) if expired else None
    since = _LONG_AGO if expired else None
    cert = _authority(name).issue_cert("127.0.0.1", "localhost", not_before=since, not_after=until)
    file = _folder() / f"{name}{'-expired' if expired else ''}-cert.pem"
    cert.private_key_and_cert_chain_pem.write_to_path(file)
    return str(file)
