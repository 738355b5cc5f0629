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

# A free port at the first address may be taken at the next one: then another is tried.
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
        addresses: What `resolve` has returned for it; None: it is asked now.
        identity: Who is to own the files of UNIX sockets; None: the user of this process.

    Raises:
        BootError: An address cannot be resolved or listened on.
    """
    addresses = addresses or resolve(config)
    if addresses.handed_over:
        sockets = [_adopted(fd) for fd in addresses.handed_over]
        found = ListeningSockets(sockets, handed_over=True)
        found.set_timeouts(config)
        return found
    attempts = _ATTEMPTS if not config.port else 1
    while True:
        sockets_of_ours = ListeningSockets()
        attempts -= 1
        try:
            _listen(addresses, config, identity, sockets_of_ours)
        except _PortTakenError as error:
            sockets_of_ours.close()
            if not attempts:
                raise BootError(str(error)) from None
        except BaseException:
            sockets_of_ours.close()
            raise
        else:
            return sockets_of_ours


class _PortTakenError(BootError):
    """Something listens on that port of that address."""


def _adopted(fd: int) -> ListeningSocket:
    """Return a socket that a service manager listens on for us."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        family = sock.family
    kind = UnixListeningSocket if family == socket.AF_UNIX else ListeningSocket
    adopted = kind(family, socket.SOCK_STREAM, 0, fd)
    if adopted.passes_options_on:
        adopted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    adopted.setblocking(False)
    return adopted


def _listen(
    addresses: ResolvedAddresses,
    config: Config,
    identity: Identity | None,
    sockets: ListeningSockets,
) -> None:
    """Listen on all places, and on the same port at all of them.

    A name may have addresses that this machine does not, as ``localhost`` where IPv6 is off: one
    of its addresses is enough.
    """
    port = config.port
    missing: dict[str, BootError] = {}
    reached = set(addresses.included)
    for place in addresses.places:
        if place.family == socket.AF_UNIX:
            sockets.add(*listen_at_path(place, config, identity))
            continue
        try:
            sock = _listening_at(place, port, config)
        except OSError as error:
            problem = _explained(error, place, port, config)
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise problem from None
            missing.setdefault(place.host, problem)
        else:
            sockets.add(sock)
            reached.add(place.host)
            port = sock.address[1]
    for host, problem in missing.items():
        if host not in reached:
            raise problem


def _listening_at(place: Place, port: int, config: Config) -> ListeningSocket:
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


def _explained(error: OSError, place: Place, number: int, config: Config) -> BootError:
    name = place.address[0]
    what = f"cannot listen on {format_address(name, number)}"
    port, host = config.source("port"), config.source("host")
    if name != place.host:
        port, host = (f"{source}, {place.host}" for source in (port, host))
    if error.errno == errno.EADDRINUSE:
        return _PortTakenError(
            f"{what} ({port}): the port is already in use; stop its server or choose another"
        )
    if error.errno == errno.EACCES:
        reason = "a port this low needs privileges; choose one from 1024 up"
        return BootError(f"{what} ({port}): {reason}")
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return BootError(f"{what} ({host}): this machine does not have that address")
    return BootError(f"{what} ({port}): {error.strerror}")
