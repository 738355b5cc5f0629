"""Where the listening socket comes from: bound here, or handed over by a service manager."""

import errno
import os
import socket

from echoserver.config import Config
from echoserver.connection import write_patience
from echoserver.errors import BootError
from echoserver.service_manager import inherited
from echoserver.sockets import set_timeout


def bind(config: Config) -> socket.socket:
    """Return a listening socket for `config`.

    Its options are inherited by every connection that it accepts, which saves three system calls
    for each: TCP_NODELAY, and the timeouts that the blocking driver leaves to the kernel.

    Raises:
        BootError: The address cannot be resolved or listened on.
    """
    if (handed_over := inherited()) is not None:
        return _adopted(handed_over, config)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BootError(
            f"{config.source('host')}: cannot resolve the host {config.host!r}: {reason}"
        ) from None
    sock = _Listening(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            # "::" means every address, of both families, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        set_inherited_timeouts(sock, config)
        sock.bind(address)
        sock.listen(config.backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise BootError(_explain(error, config)) from None
    return sock


def _adopted(fd: int, config: Config) -> socket.socket:
    """Return a socket that a service manager listens on for us."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        family = sock.family
    sock = _Listening(family, socket.SOCK_STREAM, 0, fd)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_inherited_timeouts(sock, config)
    sock.setblocking(False)
    sock.handed_over = True
    return sock


class _Listening(socket.socket):
    """A listening socket that knows its family and its type.

    `socket.socket` asks enumerations for them at every ``accept``, which is a third of its time.
    """

    family = socket.AF_UNSPEC
    type = socket.SOCK_STREAM
    handed_over = False

    def __init__(self, family: int, kind: int, protocol: int, fd: int | None = None) -> None:
        super().__init__(family, kind, protocol, fd)
        self.family = socket.AddressFamily(family)


def handed_over(sock: socket.socket) -> bool:
    """Tell whether a listening socket is a service manager's.

    Then it outlives this server, and so do the clients in its queue.
    """
    return isinstance(sock, _Listening) and sock.handed_over


def set_inherited_timeouts(sock: socket.socket, config: Config) -> None:
    """Set on a listener what the connections that it accepts from now on inherit."""
    set_timeout(sock, socket.SO_RCVTIMEO, config.idle_timeout)
    set_timeout(sock, socket.SO_SNDTIMEO, write_patience(config.write_timeout))


def _explain(error: OSError, config: Config) -> str:
    where = f"[{config.host}]" if ":" in config.host else config.host
    what = f"cannot listen on {where}:{config.port}"
    port, host = config.source("port"), config.source("host")
    if error.errno == errno.EADDRINUSE:
        return f"{what} ({port}): the port is already in use; stop its server or choose another"
    if error.errno == errno.EACCES:
        return f"{what} ({port}): a port this low needs privileges; choose one from 1024 up"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{what} ({host}): this machine does not have that address"
    return f"{what} ({port}): {error.strerror}"


def somaxconn() -> int | None:
    """Return the kernel's cap on the backlog, None where it cannot be told."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:  # noqa: PTH123 - no pathlib for one figure
            return int(file.read())
    except (OSError, ValueError):
        return None
