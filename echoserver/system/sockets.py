"""Socket options and kernel queries that the module `socket` has no methods for."""

import errno
import fcntl
import math
import socket
import struct
import sys
import termios
from contextlib import suppress

_NO_LINGER = struct.pack("ii", 1, 0)
_MAPPED = "::ffff:"
_TCP_CLOSE = 7  # tcp_states.h


def canonical_host(host: str) -> str:
    """Return the canonical spelling of an address: ``::ffff:192.0.2.1`` is IPv4 (RFC 4291)."""
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Set SO_RCVTIMEO or SO_SNDTIMEO (socket(7)); 0 is off."""
    timeval = divmod(math.ceil(seconds * 1e6), 1_000_000)  # rounded up: 0 would mean off
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", *timeval))


def undelivered_bytes(sock: socket.socket) -> int:
    """Return how many bytes of output the peer's kernel has not acknowledged (our FIN is one).

    (tcp(7), SIOCOUTQ. After a reset that figure stays where it was, so the state is queried first.)
    Data sent over a UNIX socket is in the peer's own queue already, from which neither our close
    nor the end of this process can take it away.
    """
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a UNIX socket
            return 0
        raise
    return 0 if state == _TCP_CLOSE else send_queue_size(sock)


def send_queue_size(sock: socket.socket) -> int:
    """Return the size in bytes of the output that the peer has not taken yet.

    For TCP these are the bytes that the peer has not acknowledged (tcp(7), SIOCOUTQ). For a UNIX
    socket it is the memory of what the peer has not read, which is more, and is freed in steps.
    """
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def accept_queue(listener: socket.socket) -> tuple[int, int]:
    """Return how many clients wait to be accepted, and how many may (tcp(7), TCP_INFO).

    (In a listener's TCP_INFO, ``tcpi_unacked`` and ``tcpi_sacked`` have that meaning.)
    """
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    waiting, limit = struct.unpack_from("=II", info, 24)
    return waiting, limit


def reset_on_close(sock: socket.socket) -> None:
    """Turn the close that follows into a reset (RST), which frees the kernel's buffers at once."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def somaxconn() -> int | None:
    """Return the kernel's cap on the backlog, or None if it cannot be read."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:  # noqa: PTH123 - no pathlib for one figure
            return int(file.read())
    except (OSError, ValueError):
        return None
