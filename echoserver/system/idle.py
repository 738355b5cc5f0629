"""How long clients have been silent, according to the kernel's record of each connection.

No concurrency model keeps track of that, because it would cost time for every message. And this
process has no descriptor for a connection that another process serves. So the kernel is asked about
all connections at once (sock_diag(7)).
"""

import errno
import socket
import struct
from collections.abc import Iterable

from echoserver.system.sock_diag import attributes, query

_INFO = 2  # INET_DIAG_INFO: struct tcp_info
_ESTABLISHED = 1 << 1

_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2 (linux/inet_diag.h), without its id
_IDENTITY = struct.Struct("!HH16s16s12x")  # ports and addresses, as they are on the wire
_REPLY = struct.Struct("=BBBB")  # struct inet_diag_msg, up to its id
_QUEUES = struct.Struct("=4xII8x")
_LAST_SENT, _LAST_RECEIVED = 44, 52  # in struct tcp_info, milliseconds ago (linux/tcp.h)

Peer = tuple[bytes, int]
"""A client's address, packed as in IPv6, and port."""


def peer_key(address: str, port: int) -> Peer:
    """Return the key of a client in `silence_by_peer`."""
    if ":" not in address:
        return bytes(10) + b"\xff\xff" + socket.inet_aton(address), port
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0]), port


def silence_by_peer(listeners: Iterable[socket.socket]) -> dict[Peer, float]:
    """Return for how many seconds each client of `listeners` has neither sent nor received data.

    Clients that are owed something are left out: those whose data has not been read yet, and those
    that have not acknowledged what the server sent.

    Raises:
        OSError: The kernel does not tell, as is the case for UNIX sockets.
    """
    silence: dict[Peer, float] = {}
    ports = {
        (one.family, one.getsockname()[1]) for one in listeners if one.family != socket.AF_UNIX
    }
    if not ports:
        raise OSError(errno.EOPNOTSUPP, "of UNIX sockets, the kernel does not tell who is silent")
    for family, port in ports:
        identity = _IDENTITY.pack(port, 0, b"", b"")
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _ESTABLISHED)
        for body in query(request + identity, dump=True):
            _record(body, silence)
    return silence


def _record(body: bytes, silence: dict[Peer, float]) -> None:
    family, *_ = _REPLY.unpack_from(body)
    _, port, _, address = _IDENTITY.unpack_from(body, _REPLY.size)
    unread, unsent = _QUEUES.unpack_from(body, _REPLY.size + _IDENTITY.size)
    for kind, info in attributes(body[_REPLY.size + _IDENTITY.size + _QUEUES.size :]):
        if kind == _INFO and not (unread or unsent):
            ages = (struct.unpack_from("=I", info, at)[0] for at in (_LAST_SENT, _LAST_RECEIVED))
            packed = address if family == socket.AF_INET6 else bytes(10) + b"\xff\xff" + address[:4]
            silence[packed, port] = min(ages) / 1000
