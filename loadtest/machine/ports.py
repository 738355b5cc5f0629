"""The TCP ports of this machine: those of outgoing connections, and one for a server."""

import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from loadtest.machine.environment import number_in

_LOOPBACK = "127.0.0.1"
_FIRST_UNPRIVILEGED, _LAST = 1024, 65535
_ENOUGH_CANDIDATES = 1000
_ATTEMPTS = 100


def local_ports() -> tuple[int, int]:
    """Return the first and last port that the kernel gives to outgoing connections."""
    with suppress(OSError, ValueError):
        words = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
        return int(words[0]), int(words[1])
    return 32768, 60999


def free_port() -> int:
    """Return a port of the loopback address on which nothing listens, for a server to be started.

    It is not one of those that the kernel gives to outgoing connections, because any program could
    get that before the server listens (unless hardly any others are left).
    """
    first, last = local_ports()
    candidates: list[int] = [*range(_FIRST_UNPRIVILEGED, first), *range(last + 1, _LAST + 1)]
    if len(candidates) >= _ENOUGH_CANDIDATES:
        for port in random.sample(candidates, _ATTEMPTS):
            with suppress(OSError), socket.socket() as probe:
                probe.bind((_LOOPBACK, port))
                return port
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        free: int = probe.getsockname()[1]
        return free


_MAX_TIME_WAIT_SHARE = 0.5  # of the local ports; above it, no new connections are made

_COOL_DOWN = 65.0  # seconds: a little more than TIME_WAIT lasts (Linux: 60)

_REUSE_DELAY = 1.1  # seconds: the same, where the kernel reuses such ports

_POLL_INTERVAL = 0.2


def cool_down(needed: int, progress: Callable[[float, float, int], None]) -> None:
    """Wait while too many of this machine's ports are in TIME_WAIT to begin `needed` connections.

    The side that closes first keeps the pair of ports for a minute (RFC 9293, section 3.6.1), and a
    round that reconnects for every message leaves thousands. Linux reuses them after a second
    if net.ipv4.tcp_tw_reuse allows it, as it does by default on the loopback.
    """
    first, last = local_ports()
    longest_seconds = _REUSE_DELAY if number_in("/proc/sys/net/ipv4/tcp_tw_reuse") else _COOL_DOWN
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < longest_seconds:
        if time_wait() + needed < _MAX_TIME_WAIT_SHARE * (last - first):
            return
        progress(elapsed, 0.0, 0)
        time.sleep(_POLL_INTERVAL)


def time_wait() -> int:
    """Return how many TCP connections of this machine are in TIME_WAIT."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/net/sockstat").read_text(encoding="ascii").splitlines():
            if line.startswith("TCP:"):
                words = line.split()
                return int(words[words.index("tw") + 1])
    return 0
