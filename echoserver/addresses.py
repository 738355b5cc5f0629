"""Addresses as people type them, as they are shown, and as the kernel takes them.

An address is a host and a port. A UNIX socket (unix(7)) has the host ``unix:/path``, or
``unix:@name`` where its name is abstract and no file, and the port 0.
"""

import os

UNIX = "unix:"
HIGHEST_PORT = 65535
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Hosts that stand for every address of this machine → the address that reaches it from here."""
_MAX_NAME_BYTES = 107  # sun_path has 108, of which one is a NUL (unix(7))


def is_unix(host: str) -> bool:
    """Tell whether a host is a UNIX socket: ``unix:/path``, ``unix:@name`` or ``@name``."""
    return host.startswith((UNIX, "@"))


def parse_host(text: str) -> str:
    """Return the canonical form of a host: ``@name`` becomes ``unix:@name``.

    Raises:
        ValueError: The host is a UNIX socket without a name, or with one that is too long; the
            message completes "X must be ...".
    """
    if not is_unix(text):
        return text
    name = text.removeprefix(UNIX)
    if not name.removeprefix("@"):
        raise ValueError("an address, a name, unix:/path or unix:@name")
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        raise ValueError(
            f"a UNIX socket with a path of at most {_MAX_NAME_BYTES} bytes (unix(7)); "
            "a path relative to the working directory may be short enough"
        )
    return UNIX + name


def socket_name(host: str) -> str:
    """Return what bind(2) and connect(2) take for the host of a UNIX socket."""
    name = host.removeprefix(UNIX)
    return "\0" + name[1:] if name.startswith("@") else name


def unix_host(name: str | bytes) -> str:
    """Return the host of a UNIX socket that getsockname(2) gives this name."""
    text = os.fsdecode(name)
    return UNIX + ("@" + text[1:] if text.startswith("\0") else text)


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of the address of a server.

    ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT`` (127.0.0.1), ``unix:/path``, ``@name``.

    Raises:
        ValueError: The text is none of these; the message is a sentence.
    """
    if is_unix(text):
        try:
            return parse_host(text), 0
        except ValueError as error:
            raise ValueError(f"{text!r} is not {error}") from None
    scheme, separator, rest = text.partition("://")
    if separator:
        raise ValueError(f"{text!r} is not HOST:PORT; leave out {scheme}://, as in {rest}")
    host, port = _split(text)
    if not port:
        raise ValueError(f"{text!r} is not HOST:PORT with a port from 1 to {HIGHEST_PORT}")
    return host or "127.0.0.1", port


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; IPv6 in brackets, and 0 for a port that is free.

    Raises:
        ValueError: The text is not such an endpoint; the message completes "must be ...".
    """
    try:
        host, port = _split(text)
    except ValueError:
        host, port = "", None
    if not host or port is None:
        raise ValueError("HOST:PORT, such as 127.0.0.1:9100 or [::1]:9100")
    return host, port


def _split(text: str) -> tuple[str, int | None]:
    """Return host and port; None for a port that is missing or not valid."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is ambiguous; write an IPv6 address in brackets: [::1]:9999")
    if not (colon and port.isascii() and port.isdigit() and int(port) <= HIGHEST_PORT):
        return host, None
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return ``HOST:PORT``, an IPv6 address in brackets; of a UNIX socket, the host alone."""
    if is_unix(host):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
