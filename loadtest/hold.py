"""Idle connections: how many a server holds, and what each of them costs it."""

import select
import socket
import struct
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from clients.address import connect
from clients.client import EchoClient
from loadtest.measure import allow_descriptors
from loadtest.sampler import Sampler, queue_length
from loadtest.targets import Running, Target

_PROBE = b"held"
_GLANCE = 0.05  # seconds
_SETTLED = 1.0  # seconds without a change
_PATIENCE = 60.0  # seconds until everyone must have been accepted


@dataclass(frozen=True, slots=True)
class Held:
    """What a server was seen to hold."""

    target: str
    wanted: int
    held: int
    """Connections that were accepted, and still answered in the end."""
    bytes_each: float | None
    """PSS that the server's process tree grew by, per connection; None where it cannot be told.

    Without the pages of files: whose share they are depends on what else runs on this machine.
    """
    seconds: float
    """Until all were accepted."""
    cpu_percent_idle: float
    """CPU of the server while nobody asks; 100 is one core."""


def hold(target: Target, connections: int) -> Held:
    """Open `connections` to a fresh server, let them be idle, and look at its memory.

    Each asks once, so that it has what a connection that was in use has.

    Raises:
        loadtest.measure.LoadError: This machine has not so many descriptors.
    """
    allow_descriptors(connections)
    with target.started() as server, Sampler(server.pid or 0) as watch, ExitStack() as stack:
        with EchoClient(server.host, server.port) as client:
            client.echo(_PROBE)
        before = watch.pss_bytes(files=False)
        begun = time.monotonic()
        socks = [stack.enter_context(_connect(server)) for _ in range(connections)]
        _await_accepted(server)
        seconds = time.monotonic() - begun
        asked = _who_answer(socks)
        after = _settled_pss(watch)
        idle_from, used = time.monotonic(), watch.cpu_seconds()
        time.sleep(_SETTLED)
        idle = (watch.cpu_seconds() - used) / (time.monotonic() - idle_from)
        held = len(_who_answer(asked))
    return Held(
        target.name,
        connections,
        held,
        (after - before) / held if before and after and held else None,
        seconds,
        100 * idle,
    )


def _connect(server: Running) -> socket.socket:
    sock = connect(server.host, server.port, _PATIENCE)
    # Its end is a reset: thousands in TIME_WAIT would keep the ports from the next server.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def _who_answer(socks: list[socket.socket]) -> list[socket.socket]:
    """Ask all, and return those that answer before there has been silence for a second."""
    poll = select.poll()
    waiting = {}
    for sock in socks:
        with suppress(OSError):
            sock.sendall(_PROBE)
            poll.register(sock, select.POLLIN)
            waiting[sock.fileno()] = sock
    answered = []
    while waiting and (events := poll.poll(_SETTLED * 1000)):
        for fd, _ in events:
            poll.unregister(fd)
            sock = waiting.pop(fd)
            with suppress(OSError):
                if sock.recv(len(_PROBE)) == _PROBE:
                    answered.append(sock)
    return answered


def _await_accepted(server: Running) -> None:
    """Return when everyone is accepted, or nobody has been for a second."""
    last, since = queue_length(server.host, server.port), time.monotonic()
    while last and time.monotonic() - since < _SETTLED:
        time.sleep(_GLANCE)
        if (now := queue_length(server.host, server.port)) != last:
            last, since = now, time.monotonic()


def _settled_pss(watch: Sampler) -> int | None:
    """Return the memory once it has stopped to change, or after a minute."""
    last, since = watch.pss_bytes(files=False), time.monotonic()
    give_up = since + _PATIENCE
    while time.monotonic() - since < _SETTLED and time.monotonic() < give_up:
        time.sleep(_GLANCE * 4)
        if abs((now := watch.pss_bytes(files=False) or 0) - (last or 0)) > (last or 0) // 200:
            last, since = now, time.monotonic()
    return last
