"""The header by which a balancer tells a server whose connection it passes on (PROXY protocol)."""

import socket
from typing import Any

from echoserver.admission.proxy_protocol import LOCAL, LOCAL_V1, encode

_INTERNET = {socket.AF_INET, socket.AF_INET6}

VERSIONS = ("v1", "v2")


def local_header(version: str) -> bytes:
    """Return the header of a connection that is the balancer's own."""
    return LOCAL if version == "v2" else LOCAL_V1


def proxy_header(version: str, sock: socket.socket) -> bytes:
    """Return the header for a connection that is, or is being, made: with its own two addresses."""
    if sock.family not in _INTERNET:
        return local_header(version)
    return encode(version, sock.getsockname()[:2], sock.getpeername()[:2])


class PrefacedSocket:
    """A socket that sends a header before all else, as soon as it can send.

    For a connection that is still being made; it has all else from the socket.
    """

    def __init__(self, sock: socket.socket, version: str, peer: Any) -> None:
        self._sock = sock
        self._header = (
            encode(version, sock.getsockname()[:2], peer[:2])
            if sock.family in _INTERNET
            else local_header(version)
        )

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Send the header, unless that is done, and as much of `data` as the kernel takes.

        Raises:
            BlockingIOError: It takes nothing for now.
        """
        while self._header:
            sent = self._sock.send(self._header, flags)
            self._header = self._header[sent:]
        return self._sock.send(data, flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
