"""What a server listens on: sockets bound here, or handed over by a service manager."""

import errno
import os
import socket

from echoserver.addresses import format_address
from echoserver.admission.listening_sockets import (
    ListeningSocket,
    ListeningSockets,
    UnixListeningSocket,
    set_timeouts,
)
from echoserver.admission.resolution import Place, ResolvedAddresses, resolve
from echoserver.admission.unix_binding import listen_at_path
from echoserver.config import Config
from echoserver.errors import BootError
from echoserver.system.privileges import Identity

# A port that is free at the first address may be in use at the next one; then another is tried.
_ATTEMPTS = 20


def bind(
    config: Config,
    addresses: "ResolvedAddresses | None" = None,
    identity: Identity | None = None,
) -> ListeningSockets:
    """Return listening sockets for all hosts of `config`.

    The options of a TCP socket are inherited by every connection that it accepts, which saves
    three system calls for each: TCP_NODELAY, and the timeouts that the blocking driver leaves to
    the kernel.

    Args:
        config: The port, the backlog and the timeouts.
        addresses: What `resolve` has returned for `config`; None: resolve its hosts now.
        identity: The owner of the files of UNIX sockets; None: the user of this process.

    Raises:
        BootError: An address cannot be resolved or listened on.
    """
    addresses = addresses or resolve(config)
    if addresses.inherited_fds:
        inherited_sockets = [_adopt(fd) for fd in addresses.inherited_fds]
        sockets = ListeningSockets(inherited_sockets, from_service_manager=True)
        sockets.set_timeouts(config)
        return sockets
    attempts = _ATTEMPTS if not config.port else 1
    while True:
        sockets = ListeningSockets()
        attempts -= 1
        try:
            _listen(addresses, config, identity, sockets)
        except _PortTakenError as error:
            sockets.close()
            if not attempts:
                raise BootError(str(error)) from None
        except BaseException:
            sockets.close()
            raise
        else:
            return sockets


class _PortTakenError(BootError):
    """Another socket already listens on that port of the address."""


def _adopt(fd: int) -> ListeningSocket:
    """Return a listening socket that a service manager has made for this server."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        family = sock.family
    kind = UnixListeningSocket if family == socket.AF_UNIX else ListeningSocket
    inherited_socket = kind(family, socket.SOCK_STREAM, 0, fd)
    if inherited_socket.passes_options_on:
        inherited_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inherited_socket.setblocking(False)
    return inherited_socket


def _listen(
    addresses: ResolvedAddresses,
    config: Config,
    identity: Identity | None,
    sockets: ListeningSockets,
) -> None:
    """Listen on all places, and on the same port at all of them.

    A name may have addresses that this machine lacks, such as ``::1`` for ``localhost`` where IPv6
    is off. So one address of each name is enough.
    """
    port = config.port
    problems: dict[str, BootError] = {}
    hosts = set(addresses.covered_hosts)
    for place in addresses.places:
        if place.family == socket.AF_UNIX:
            sockets.add(*listen_at_path(place, config, identity))
            continue
        try:
            sock = _listen_at(place, port, config)
        except OSError as error:
            problem = _boot_error(error, place, port, config)
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise problem from None
            problems.setdefault(place.host, problem)
        else:
            sockets.add(sock)
            hosts.add(place.host)
            port = sock.address[1]
    for host, problem in problems.items():
        if host not in hosts:
            raise problem


def _listen_at(place: Place, port: int, config: Config) -> ListeningSocket:
    sock = ListeningSocket(place.family, socket.SOCK_STREAM, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if place.family == socket.AF_INET6:
            # "::" means every address, of both families, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        set_timeouts(sock, config)
        sock.bind(place.at(port))
        sock.listen(config.backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _boot_error(error: OSError, place: Place, port: int, config: Config) -> BootError:
    name = place.address[0]
    what = f"cannot listen on {format_address(name, port)}"
    port_source, host_source = config.source("port"), config.source("host")
    if name != place.host:
        port_source = f"{port_source}, {place.host}"
        host_source = f"{host_source}, {place.host}"
    if error.errno == errno.EADDRINUSE:
        return _PortTakenError(
            f"{what} ({port_source}): the port is already in use; stop its server or choose another"
        )
    if error.errno == errno.EACCES:
        reason = "a port this low needs privileges; choose one from 1024 up"
        return BootError(f"{what} ({port_source}): {reason}")
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return BootError(f"{what} ({host_source}): this machine does not have that address")
    return BootError(f"{what} ({port_source}): {error.strerror}")
