"""Servers' addresses: as people type them, and connections to them."""

import errno
import os
import socket
from typing import TYPE_CHECKING, cast

from echoserver.addresses import (
    EVERY_ADDRESS,
    format_address,
    is_unix,
    parse_address,
    socket_name,
    unix_host,
)
from echoserver.system.sockets import set_timeout

if TYPE_CHECKING:
    from echoserver.conversation.tls import TlsSocket

__all__ = [
    "EVERY_ADDRESS",
    "SocketAddress",
    "connect",
    "format_address",
    "format_socket_address",
    "is_unix",
    "parse_address",
    "peer_address",
    "resolve_reachable",
    "server_name",
]


SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""What connect(2) takes for TCP: of IPv6 with flow information, and the number of the scope."""

_PROBE_TIMEOUT = 1.0  # seconds for one of several addresses to accept


def resolve_reachable(host: str, port: int) -> SocketAddress:
    """Return the address of a host on which something accepts connections on `port`.

    A name may have several, such as ``::1`` and ``127.0.0.1`` for ``localhost``, of which a server
    has one: then each is tried, as clients do. Where none accepts, it is the first.

    Raises:
        OSError: The host cannot be resolved.
    """
    addresses = [
        (family, address)
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]
    if len(addresses) > 1:
        for family, address in addresses:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(_PROBE_TIMEOUT)
                if probe.connect_ex(address) == 0:
                    return cast("SocketAddress", address)
    return cast("SocketAddress", addresses[0][1])


def format_socket_address(address: SocketAddress) -> str:
    """Return ``HOST:PORT``, with the scope of an IPv6 address that has one."""
    host, port, *more = address
    scope = f"%{socket.if_indextoname(int(more[1]))}" if more and more[1] else ""
    return format_address(str(host).partition("%")[0] + scope, int(port))


def connect(host: str, port: int, timeout: float | None = None) -> socket.socket:
    """Return a connection to a server.

    Args:
        host: Name or address, ``unix:/path`` or ``@name``.
        port: TCP port; 0 for a UNIX socket.
        timeout: Seconds that this, and then each wait for the server, may take; None: no limit.

    Raises:
        OSError: It could not be made.
    """
    if not is_unix(host):
        sock = socket.create_connection((host, port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Not by settimeout: connect(2) on a socket that does not block fails at once where the
        # server's queue is full (EAGAIN), and waits for room on one that does.
        sock.setblocking(True)
        set_timeout(sock, socket.SO_SNDTIMEO, timeout or 0)
        sock.connect(socket_name(host))
        set_timeout(sock, socket.SO_SNDTIMEO, 0)
        sock.settimeout(timeout)
    except BlockingIOError:
        sock.close()
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    except FileNotFoundError:  # which is to a UNIX socket what a refusal is to a port
        sock.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, "there is no such socket") from None
    except BaseException:
        sock.close()
        raise
    return sock


def peer_address(sock: "socket.socket | TlsSocket") -> str:
    """Return the address of the server that a socket is connected to, as it is shown."""
    name = sock.getpeername()
    return format_address(*name[:2]) if isinstance(name, tuple) else unix_host(name)


def server_name(host: str) -> str:
    """Return the name that the certificate of a server must have: a UNIX socket has none."""
    return "localhost" if is_unix(host) else host
