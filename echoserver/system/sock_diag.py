"""Facts about sockets that the kernel tells over netlink only, not by descriptor (sock_diag(7))."""

import os
import socket
import struct
import sys
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST, _DUMP = 0x001, 0x300  # linux/netlink.h: NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_MAX_REPLY_SIZE = 1 << 18  # bytes
_REPLY_TIMEOUT = 1.0  # seconds

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

_UNIX_REQUEST = struct.Struct("=BBHIII8s")  # struct unix_diag_req (linux/unix_diag.h)
_UNIX_REPLY = struct.Struct("=BBBBI8s")  # struct unix_diag_msg
_ANY_STATE, _ANY_COOKIE = 0xFFFFFFFF, b"\xff" * 8
_SHOW_QUEUES, _QUEUES = 0x10, 4  # UDIAG_SHOW_RQLEN, UNIX_DIAG_RQLEN


def query(request: bytes, *, dump: bool) -> Iterator[bytes]:
    """Send a request to the kernel, and yield its answers.

    Args:
        request: A request in the format of its address family.
        dump: Ask about every socket that matches, instead of about one.

    Raises:
        OSError: The kernel refuses to answer, or there is no such socket.
    """
    flags = _REQUEST | (_DUMP if dump else 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_REPLY_TIMEOUT)
        size = _HEADER.size + len(request)
        sock.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + request)
        while True:
            for kind, body in _messages(sock.recv(_MAX_REPLY_SIZE)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    raise OSError(number, os.strerror(number))
                yield body
                if not dump:
                    return


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        size, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size]
        data = data[(size + 3) & ~3 :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and value of each attribute that follows the fixed part of an answer."""
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
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY_STATE, inode, _SHOW_QUEUES, _ANY_COOKIE)
    for body in query(request, dump=False):
        for kind, value in attributes(body[_UNIX_REPLY.size :]):
            if kind == _QUEUES:
                waiting, limit = struct.unpack("=II", value)
                return waiting, limit
    raise OSError("no such socket")
