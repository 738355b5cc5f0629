"""Idle connections: how many a server holds, and what each of them costs it."""

import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from clients.address import connect
from clients.client import EchoClient
from echoserver.errors import EchoServerError
from echoserver.system.sockets import abort
from loadtest.errors import ClientError, LoadError
from loadtest.load.round import describe_end
from loadtest.machine.descriptors import allow_descriptors
from loadtest.machine.sampler import Sampler
from loadtest.machine.sockets import queue_length
from loadtest.results.held import Held
from loadtest.servers.targets import Running, Target

_PROBE = b"held"

_POLL_INTERVAL = 0.05  # seconds

_SETTLED = 1.0  # seconds without a change

_PATIENCE = 60.0  # seconds until everyone must have been accepted


def hold(target: Target, connections: int) -> Held:
    """Open `connections` to a fresh server, let them be idle, and look at its memory.

    Each asks once, so that it has what a connection that was in use has.

    Raises:
        LoadError: This machine has not so many descriptors, or the server takes no connection.
    """
    allow_descriptors(connections)
    with target.started() as server, _watch(server) as watch, ExitStack() as stack:
        with EchoClient(server.host, server.port) as client:
            client.echo(_PROBE)
        before = watch.pss_bytes(files=False)
        begun = time.monotonic()
        try:
            socks = [stack.enter_context(_connect(server)) for _ in range(connections)]
        except OSError as error:
            if watch.has_ended():
                raise LoadError(f"{target.name}: {_how_it_ended(server, watch)}") from None
            raise LoadError(f"{target.name}: {error.strerror or error}") from None
        _await_accepted(server)
        seconds = time.monotonic() - begun
        asked = _who_answer(socks)
        after = _settled_pss(watch)
        idle_from, used = time.monotonic(), watch.cpu_seconds()
        time.sleep(_SETTLED)
        idle = (watch.cpu_seconds() - used) / (time.monotonic() - idle_from)
        held = len(_who_answer(asked))
        gone = watch.has_ended()
        ended = _how_it_ended(server, watch)
    return Held(
        target.name,
        connections,
        held,
        (after - before) / held if before and after and held else None,
        seconds,
        None if gone else 100 * idle,
        ended if gone else "",
    )


def hold_each(
    targets: Sequence[Target], connections: int, found: list[Held], say: Callable[[str], None]
) -> list[str]:
    """Look at one target after the other; being interrupted leaves what was seen in `found`.

    Args:
        targets: What to look at; one that fails does not keep the others from it.
        connections: To open to each.
        found: Added to.
        say: Told which is begun.

    Returns:
        Why some were left out: a sentence for each.
    """
    failures: list[str] = []
    for target in targets:
        say(f"{target.name}: opening {connections} connections")
        try:
            found.append(hold(target, connections))
        except ClientError as error:  # of this machine, which would fail the others, too
            return [*failures, str(error)]
        except (LoadError, EchoServerError, OSError) as error:
            failures.append(f"{target.name} was left out: {error}")
    return failures


def _how_it_ended(server: Running, watch: Sampler) -> str:
    return describe_end(server.exit_code() if server.exit_code else None, watch)


def _watch(server: Running) -> Sampler:
    return Sampler(server.pid, (server.host, server.port))


def _connect(server: Running) -> socket.socket:
    sock = connect(server.host, server.port, _PATIENCE)
    # Its end is a reset: thousands in TIME_WAIT would keep the ports from the next server.
    abort(sock)
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
        time.sleep(_POLL_INTERVAL)
        if (now := queue_length(server.host, server.port)) != last:
            last, since = now, time.monotonic()


def _settled_pss(watch: Sampler) -> int | None:
    """Return the memory once it has stopped to change, or after a minute."""
    last, since = watch.pss_bytes(files=False), time.monotonic()
    give_up = since + _PATIENCE
    while time.monotonic() - since < _SETTLED and time.monotonic() < give_up:
        time.sleep(_POLL_INTERVAL * 4)
        if abs((now := watch.pss_bytes(files=False) or 0) - (last or 0)) > (last or 0) // 200:
            last, since = now, time.monotonic()
    return last
