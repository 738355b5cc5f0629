"""Idle connections: how many a server holds, and what each of them costs it."""

import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from clients.address import connect
from clients.client import EchoClient
from echoserver.errors import EchoServerError
from echoserver.system.sockets import reset_on_close
from loadtest.errors import ClientError, LoadError
from loadtest.load.round import describe_end
from loadtest.machine.descriptors import allow_descriptors
from loadtest.machine.sampler import Sampler
from loadtest.machine.sockets import queue_length
from loadtest.results.held import HoldResult
from loadtest.servers.targets import RunningServer, Target

_PROBE = b"held"

_POLL_INTERVAL = 0.05  # seconds

_SETTLE_TIME = 1.0  # seconds without a change

_PATIENCE = 60.0  # seconds until every connection must have been accepted


def hold(target: Target, connections: int) -> HoldResult:
    """Open idle connections to a fresh server, and measure its memory.

    Each connection sends one message, so that the server has allocated what one in use needs.

    Raises:
        LoadError: This machine has too few descriptors, or the server accepts no connection.
    """
    allow_descriptors(connections)
    with target.run() as server, _watch(server) as watch, ExitStack() as stack:
        with EchoClient(server.host, server.port) as client:
            client.echo(_PROBE)
        before = watch.pss_bytes(files=False)
        start = time.monotonic()
        try:
            socks = [stack.enter_context(_connect(server)) for _ in range(connections)]
        except OSError as error:
            if watch.has_ended():
                raise LoadError(f"{target.name}: {_describe_end(server, watch)}") from None
            raise LoadError(f"{target.name}: {error.strerror or error}") from None
        _await_accepted(server)
        seconds = time.monotonic() - start
        accepted = _answering(socks)
        after = _stable_pss(watch)
        idle_from, cpu_before = time.monotonic(), watch.cpu_seconds()
        time.sleep(_SETTLE_TIME)
        idle_share = (watch.cpu_seconds() - cpu_before) / (time.monotonic() - idle_from)
        held_count = len(_answering(accepted))
        has_ended = watch.has_ended()
        end = _describe_end(server, watch)
    return HoldResult(
        target.name,
        connections,
        held_count,
        (after - before) / held_count if before and after and held_count else None,
        seconds,
        None if has_ended else 100 * idle_share,
        end if has_ended else "",
    )


def hold_each(
    targets: Sequence[Target],
    connections: int,
    results: list[HoldResult],
    say: Callable[[str], None],
) -> list[str]:
    """Measure one target after the other, and add the results to `results`.

    An interruption leaves the results so far in it.

    Args:
        targets: The targets; the failure of one does not affect the others.
        connections: The number of connections to open to each.
        results: The list to which results are added.
        say: Called with a sentence when a target is begun.

    Returns:
        Why some were left out: a sentence for each.
    """
    failures: list[str] = []
    for target in targets:
        say(f"{target.name}: opening {connections} connections")
        try:
            results.append(hold(target, connections))
        except ClientError as error:  # this machine's limit would fail the others, too
            return [*failures, str(error)]
        except (LoadError, EchoServerError, OSError) as error:
            failures.append(f"{target.name} was left out: {error}")
    return failures


def _describe_end(server: RunningServer, watch: Sampler) -> str:
    return describe_end(server.exit_code() if server.exit_code else None, watch)


def _watch(server: RunningServer) -> Sampler:
    return Sampler(server.pid, (server.host, server.port))


def _connect(server: RunningServer) -> socket.socket:
    sock = connect(server.host, server.port, _PATIENCE)
    # It ends with a reset: thousands in TIME_WAIT would leave too few ports for the next server.
    reset_on_close(sock)
    return sock


def _answering(socks: list[socket.socket]) -> list[socket.socket]:
    """Send a message on all sockets; return those that answer until a second passes in silence."""
    poll = select.poll()
    pending = {}
    for sock in socks:
        with suppress(OSError):
            sock.sendall(_PROBE)
            poll.register(sock, select.POLLIN)
            pending[sock.fileno()] = sock
    answering = []
    while pending and (events := poll.poll(_SETTLE_TIME * 1000)):
        for fd, _ in events:
            poll.unregister(fd)
            sock = pending.pop(fd)
            with suppress(OSError):
                if sock.recv(len(_PROBE)) == _PROBE:
                    answering.append(sock)
    return answering


def _await_accepted(server: RunningServer) -> None:
    """Wait until all connections are accepted, or for a second in which none was."""
    last, since = queue_length(server.host, server.port), time.monotonic()
    while last and time.monotonic() - since < _SETTLE_TIME:
        time.sleep(_POLL_INTERVAL)
        if (now := queue_length(server.host, server.port)) != last:
            last, since = now, time.monotonic()


def _stable_pss(watch: Sampler) -> int | None:
    """Return the memory once it has stopped changing, or after a minute."""
    last, since = watch.pss_bytes(files=False), time.monotonic()
    deadline = since + _PATIENCE
    while time.monotonic() - since < _SETTLE_TIME and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL * 4)
        if abs((now := watch.pss_bytes(files=False) or 0) - (last or 0)) > (last or 0) // 200:
            last, since = now, time.monotonic()
    return last
