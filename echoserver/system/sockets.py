"""What the kernel is asked to do, and asked about, beyond what `socket` has methods for."""

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


def spelled(host: str) -> str:
    """Return an address in its one spelling: ``::ffff:192.0.2.1`` is one of IPv4 (RFC 4291)."""
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Set SO_RCVTIMEO or SO_SNDTIMEO (socket(7)); 0 is off."""
    timeval = divmod(math.ceil(seconds * 1e6), 1_000_000)  # up: what is not 0 must not become it
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", *timeval))


def undelivered(sock: socket.socket) -> int:
    """Return how many bytes of output the peer's kernel has not acknowledged (our FIN is one).

    (tcp(7), SIOCOUTQ. After a reset that figure stays where it was, so the state is asked first.)
    What was sent over a UNIX socket is in the peer's own queue already, where neither our close nor
    our end can take it away.
    """
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a UNIX socket
            return 0
        raise
    return 0 if state == _TCP_CLOSE else untaken(sock)


def untaken(sock: socket.socket) -> int:
    """Return a figure that falls while the peer takes output, of which there is some left.

    It is the bytes that a TCP peer has not acknowledged (tcp(7), SIOCOUTQ); over a UNIX socket, the
    memory of what the peer has not read, which is more, and is freed in steps.
    """
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def accept_queue(listener: socket.socket) -> tuple[int, int]:
    """Return how many clients wait to be accepted, and how many may (tcp(7), TCP_INFO).

    (Of a listener, ``tcpi_unacked`` and ``tcpi_sacked`` mean that.)
    """
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    waiting, limit = struct.unpack_from("=II", info, 24)
    return waiting, limit


def abort(sock: socket.socket) -> None:
    """Make the close that follows a reset (RST), which frees the kernel's buffers at once."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def somaxconn() -> int | None:
    """Return the kernel's cap on the backlog, None where it cannot be told."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:  # noqa: PTH123 - no pathlib for one figure
            return int(file.read())
    except (OSError, ValueError):
        return None
