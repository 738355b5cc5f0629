"""The TCP ports of this machine: those the kernel gives away, and one for a server."""

import random
import socket
from contextlib import suppress
from pathlib import Path

_LOOPBACK = "127.0.0.1"
_FIRST_UNPRIVILEGED, _LAST = 1024, 65535
_ENOUGH = 1000
_ATTEMPTS = 100


def local_ports() -> tuple[int, int]:
    """Return the first and last port that the kernel gives to outgoing connections."""
    with suppress(OSError, ValueError):
        words = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
        return int(words[0]), int(words[1])
    return 32768, 60999


def free_port() -> int:
    """Return a port of the loopback address on which nothing listens, for a server to be started.

    It is not one of those that the kernel gives to outgoing connections: any program could get it
    until the server listens. (Where hardly any others are left, it is.)
    """
    first, last = local_ports()
    others: list[int] = [*range(_FIRST_UNPRIVILEGED, first), *range(last + 1, _LAST + 1)]
    if len(others) >= _ENOUGH:
        for port in random.sample(others, _ATTEMPTS):
            with suppress(OSError), socket.socket() as probe:
                probe.bind((_LOOPBACK, port))
                return port
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        found: int = probe.getsockname()[1]
        return found
