"""How long clients have been silent, by what the kernel knows of each connection.

No model counts that: it would cost every message. And a connection that another process serves
has no descriptor here. The kernel is asked about all of them at once (sock_diag(7)).
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST, _DUMP = 0x001, 0x300  # linux/netlink.h: NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_INFO = 2  # INET_DIAG_INFO: struct tcp_info
_ESTABLISHED = 1 << 1
_LONGEST = 1 << 18

_HEADER = struct.Struct("=IHHII")
_WANTED = struct.Struct("=BBBxI")
_IDENTITY = struct.Struct("!HH16s16s12x")  # ports and addresses, as they are on the wire
_FOUND = struct.Struct("=BBBB")
_QUEUES = struct.Struct("=4xII8x")
_ATTRIBUTE = struct.Struct("=HH")
_LAST_SENT, _LAST_RECEIVED = 44, 52  # in struct tcp_info, milliseconds ago (linux/tcp.h)

Peer = tuple[bytes, int]
"""A client's address, packed as in IPv6, and port."""


def peer(address: str, port: int) -> Peer:
    """Return how a client is called here."""
    if ":" not in address:
        return bytes(10) + b"\xff\xff" + socket.inet_aton(address), port
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0]), port


def silent(listener: socket.socket) -> dict[Peer, float]:
    """Return the seconds for which each client of a listener has sent and got nothing.

    Clients that are owed something are left out: who has sent what was not read yet, or has not
    acknowledged what it was sent.

    Raises:
        OSError: The kernel does not tell.
    """
    port = listener.getsockname()[1]
    found: dict[Peer, float] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(1.0)
        identity = _IDENTITY.pack(port, 0, b"", b"")
        wanted = _WANTED.pack(listener.family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _ESTABLISHED)
        size = _HEADER.size + len(wanted) + len(identity)
        head = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 1, 0)
        sock.send(head + wanted + identity)
        while True:
            for kind, body in _messages(sock.recv(_LONGEST)):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    problem = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    raise OSError(problem, os.strerror(problem))
                _note(body, found)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        size, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size]
        data = data[(size + 3) & ~3 :]


def _note(body: bytes, found: dict[Peer, float]) -> None:
    family, *_ = _FOUND.unpack_from(body)
    _, port, _, address = _IDENTITY.unpack_from(body, _FOUND.size)
    unread, unsent = _QUEUES.unpack_from(body, _FOUND.size + _IDENTITY.size)
    rest = body[_FOUND.size + _IDENTITY.size + _QUEUES.size :]
    while len(rest) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(rest)
        if kind == _INFO and not (unread or unsent):
            info = rest[_ATTRIBUTE.size : size]
            ages = (struct.unpack_from("=I", info, at)[0] for at in (_LAST_SENT, _LAST_RECEIVED))
            whole = address if family == socket.AF_INET6 else bytes(10) + b"\xff\xff" + address[:4]
            found[whole, port] = min(ages) / 1000
        rest = rest[(max(size, _ATTRIBUTE.size) + 3) & ~3 :]
