"""What the kernel knows of sockets that no call on a descriptor tells (sock_diag(7))."""

import os
import socket
import struct
import sys
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST, _DUMP = 0x001, 0x300  # linux/netlink.h: NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_LONGEST = 1 << 18
_PATIENCE = 1.0  # seconds

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

_UNIX_REQUEST = struct.Struct("=BBHIII8s")  # struct unix_diag_req (linux/unix_diag.h)
_UNIX_FOUND = struct.Struct("=BBBBI8s")  # struct unix_diag_msg
_ANY_STATE, _ANY_COOKIE = 0xFFFFFFFF, b"\xff" * 8
_SHOW_QUEUES, _QUEUES = 0x10, 4  # UDIAG_SHOW_RQLEN, UNIX_DIAG_RQLEN


def ask(wanted: bytes, *, all_of_them: bool) -> Iterator[bytes]:
    """Yield what the kernel answers.

    Args:
        wanted: A request of the family's.
        all_of_them: It is about every socket that fits it, and not about one.

    Raises:
        OSError: It does not tell, or there is no such socket.
    """
    flags = _REQUEST | (_DUMP if all_of_them else 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_PATIENCE)
        size = _HEADER.size + len(wanted)
        sock.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + wanted)
        while True:
            for kind, body in _messages(sock.recv(_LONGEST)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    problem = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    raise OSError(problem, os.strerror(problem))
                yield body
                if not all_of_them:
                    return


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        size, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size]
        data = data[(size + 3) & ~3 :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each attribute that stands behind an answer's fixed part."""
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : size]
        data = data[(max(size, _ATTRIBUTE.size) + 3) & ~3 :]


def unix_accept_queue(listener: socket.socket) -> tuple[int, int]:
    """Return how many clients wait to be accepted by a UNIX socket, and how many may.

    Raises:
        OSError: The kernel does not tell (CONFIG_UNIX_DIAG).
    """
    inode = os.fstat(listener.fileno()).st_ino
    wanted = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY_STATE, inode, _SHOW_QUEUES, _ANY_COOKIE)
    for body in ask(wanted, all_of_them=False):
        for kind, value in attributes(body[_UNIX_FOUND.size :]):
            if kind == _QUEUES:
                waiting, limit = struct.unpack("=II", value)
                return waiting, limit
    raise OSError("no such socket")
