"""Sockets of this machine as /proc lists them, and the processes that hold them (proc(5))."""

import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil

from echoserver.addresses import UNIX, is_unix

LISTENING = "0A"  # TCP_LISTEN, as proc(5) writes it

TCP_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """This machine's end of a TCP connection, or a listening socket."""

    port: int
    state: str
    """As proc(5) writes it; ``0A``: it is listening."""
    queued: int
    """Unread bytes; of a listening socket, connections that wait to be accepted."""
    inode: int = 0
    """The number by which /proc/PID/fd names the socket."""
    hexadecimal: str = "00000000"
    """The local address, as proc(5) writes it."""

    @property
    def address(self) -> IpAddress:
        """The local address."""
        # Words of four bytes, each in the order of this machine.
        words = (self.hexadecimal[at : at + 8] for at in range(0, len(self.hexadecimal), 8))
        return _as_ipv4(ipaddress.ip_address(b"".join(bytes.fromhex(word)[::-1] for word in words)))


def endpoints(table: str) -> Iterator[Endpoint]:
    """Yield the sockets in one of the `TCP_TABLES`, listening ones first; none if it is missing."""
    with suppress(OSError), Path(table).open(encoding="ascii") as lines:
        next(lines, "")
        for line in lines:
            _, local, _, state, queues, _, _, _, _, inode, *_ = line.split()
            address, _, port = local.rpartition(":")
            queued = int(queues.rpartition(":")[2], 16)
            yield Endpoint(int(port, 16), state, queued, int(inode), address)


def _listeners(port: int) -> Iterator[Endpoint]:
    for table in TCP_TABLES:
        for one in endpoints(table):
            if one.state != LISTENING:  # thousands may follow
                break
            if one.port == port:
                yield one


def largest_buffer(name: str) -> int:
    """Return the most bytes that the kernel gives a TCP buffer: ``tcp_rmem`` or ``tcp_wmem``."""
    words = Path(f"/proc/sys/net/ipv4/{name}").read_text(encoding="ascii").split()
    return int(words[2])


def kernel_room() -> int:
    """Return how many bytes the kernel may hold between a client that only sends, and an echo.

    That is on the way to the server, in the client's send buffer and the server's receive buffer,
    and on the way back, in the server's send buffer (tcp(7)); the client's receive buffer is taken
    to be small.
    """
    return largest_buffer("tcp_rmem") + 2 * largest_buffer("tcp_wmem")


def accept_queue(port: int) -> int | None:
    """Return how many connections wait to be accepted on a TCP port of this machine.

    None: nothing listens there that this network namespace can see.
    """
    waiting = [one.queued for one in _listeners(port)]
    return sum(waiting) if waiting else None


def listens(port: int) -> bool:
    """Tell whether something on this machine listens on a TCP port."""
    return accept_queue(port) is not None


def queue_length(host: str, port: int) -> int | None:
    """Return how many connections wait to be accepted by a server of this machine.

    None: nothing listens there that this network namespace can see.
    """
    if not is_unix(host):
        return accept_queue(port)
    # A waiting connection has a socket with the server's name that no process holds yet.
    socks = list(_unix_sockets(host))
    waiting = sum(one.waits for one in socks)
    return waiting if any(one.listens for one in socks) else None


@dataclass(frozen=True, slots=True)
class _UnixSocket:
    inode: int
    listens: bool
    waits: bool
    """It is a connection that has not been accepted."""


_UNIX_TABLE = "/proc/net/unix"
_ACCEPTS, _CONNECTING = 0x10000, b"02"  # SO_ACCEPTCON in flags; SS_CONNECTING (proc(5))


def _unix_sockets(host: str) -> Iterator[_UnixSocket]:
    """Yield the sockets that have the name of a UNIX socket; proc(5) shows a NUL as ``@``, too."""
    name = os.fsencode(host.removeprefix(UNIX))
    with suppress(OSError), Path(_UNIX_TABLE).open("rb") as lines:
        next(lines, b"")
        for line in lines:
            _, _, _, flags, _, state, inode, *path = line.split(maxsplit=7)
            if path and path[0].rstrip(b"\n") == name:
                listens = bool(int(flags, 16) & _ACCEPTS)
                yield _UnixSocket(int(inode), listens, state == _CONNECTING)


class ListeningAddress:
    """The address on which a server listens, if that is on this machine.

    Args:
        host: A name, an address or a UNIX socket.
        port: 0 for a UNIX socket.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._addresses = frozenset() if is_unix(host) else addresses_here(host, port)

    def inodes(self) -> frozenset[int]:
        """Return the inodes of the sockets that listen on the address now."""
        if is_unix(self._host):
            return frozenset(one.inode for one in _unix_sockets(self._host) if one.listens)
        return listening_inodes(self._addresses, self._port)


def addresses_here(host: str, port: int) -> frozenset[IpAddress]:
    """Return the addresses of a host; none if one of them belongs to another machine."""
    with suppress(OSError, UnicodeError, ValueError):
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = frozenset(_parse_address(str(info[4][0])) for info in infos)
        if all(one.is_loopback or one.is_unspecified for one in addresses):
            return addresses
        interfaces = chain.from_iterable(psutil.net_if_addrs().values())
        own_addresses = {
            _parse_address(interface.address)
            for interface in interfaces
            if interface.family in {socket.AF_INET, socket.AF_INET6}
        }
        if all(one.is_loopback or one in own_addresses for one in addresses):
            return addresses
    return frozenset()


def listening_inodes(addresses: frozenset[IpAddress], port: int) -> frozenset[int]:
    """Return the inodes of the sockets that listen on a port, at `addresses` or at every address.

    There are several if each process of a server has its own (SO_REUSEPORT).
    """
    return frozenset(
        one.inode
        for one in _listeners(port)
        if addresses and (one.address in addresses or one.address.is_unspecified)
    )


def holders(inodes: frozenset[int], pids: Iterable[int]) -> set[int]:
    """Return the processes that hold one of the sockets, as far as we may look at them."""
    links = {f"socket:[{inode}]" for inode in inodes}
    return {pid for pid in pids if links and _holds(pid, links)}


def _holds(pid: int, links: set[str]) -> bool:
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
        for one in descriptors:
            with suppress(OSError):
                if os.readlink(one.path) in links:  # noqa: PTH115 - there may be thousands
                    return True
    return False


def _parse_address(text: str) -> IpAddress:
    return _as_ipv4(
        ipaddress.ip_address(text.partition("%")[0])
    )  # what follows it is an IPv6 scope


def _as_ipv4(address: IpAddress) -> IpAddress:
    """Return the IPv4 address that an IPv6 address maps to, or the address itself."""
    return getattr(address, "ipv4_mapped", None) or address
