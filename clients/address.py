"""Server addresses as people type them."""

_HIGHEST_PORT = 65535


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` (127.0.0.1).

    Raises:
        ValueError: It is none of these; the message is a sentence.
    """
    if "://" in text:
        scheme, _, rest = text.partition("://")
        raise ValueError(f"{text!r} is not HOST:PORT; leave out {scheme}://, as in {rest}")
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is ambiguous; write an IPv6 address in brackets: [::1]:9999")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) <= _HIGHEST_PORT:
        raise ValueError(f"{text!r} is not HOST:PORT with a port from 1 to {_HIGHEST_PORT}")
    return host or "127.0.0.1", int(port)


def format_address(host: str, port: int) -> str:
    """Return ``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
