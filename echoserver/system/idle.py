"""How long clients have been silent, by what the kernel knows of each connection.

No model counts that: it would cost every message. And a connection that another process serves
has no descriptor here. The kernel is asked about all of them at once (sock_diag(7)).
"""

import errno
import socket
import struct
from collections.abc import Iterable

from echoserver.system.sock_diag import ask, attributes

_INFO = 2  # INET_DIAG_INFO: struct tcp_info
_ESTABLISHED = 1 << 1

_WANTED = struct.Struct("=BBBxI")
_IDENTITY = struct.Struct("!HH16s16s12x")  # ports and addresses, as they are on the wire
_FOUND = struct.Struct("=BBBB")
_QUEUES = struct.Struct("=4xII8x")
_LAST_SENT, _LAST_RECEIVED = 44, 52  # in struct tcp_info, milliseconds ago (linux/tcp.h)

Peer = tuple[bytes, int]
"""A client's address, packed as in IPv6, and port."""


def peer(address: str, port: int) -> Peer:
    """Return how a client is called here."""
    if ":" not in address:
        return bytes(10) + b"\xff\xff" + socket.inet_aton(address), port
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0]), port


def silent(listeners: Iterable[socket.socket]) -> dict[Peer, float]:
    """Return the seconds for which each client of some listeners has sent and got nothing.

    Clients that are owed something are left out: who has sent what was not read yet, or has not
    acknowledged what it was sent.

    Raises:
        OSError: The kernel does not tell, as of UNIX sockets.
    """
    found: dict[Peer, float] = {}
    asked = {
        (one.family, one.getsockname()[1]) for one in listeners if one.family != socket.AF_UNIX
    }
    if not asked:
        raise OSError(errno.EOPNOTSUPP, "of UNIX sockets, the kernel does not tell who is silent")
    for family, port in asked:
        identity = _IDENTITY.pack(port, 0, b"", b"")
        wanted = _WANTED.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _ESTABLISHED)
        for body in ask(wanted + identity, all_of_them=True):
            _note(body, found)
    return found


def _note(body: bytes, found: dict[Peer, float]) -> None:
    family, *_ = _FOUND.unpack_from(body)
    _, port, _, address = _IDENTITY.unpack_from(body, _FOUND.size)
    unread, unsent = _QUEUES.unpack_from(body, _FOUND.size + _IDENTITY.size)
    for kind, info in attributes(body[_FOUND.size + _IDENTITY.size + _QUEUES.size :]):
        if kind == _INFO and not (unread or unsent):
            ages = (struct.unpack_from("=I", info, at)[0] for at in (_LAST_SENT, _LAST_RECEIVED))
            whole = address if family == socket.AF_INET6 else bytes(10) + b"\xff\xff" + address[:4]
            found[whole, port] = min(ages) / 1000
