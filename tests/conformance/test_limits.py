"""What happens when something runs out: slots, descriptors, tasks, patience."""

import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.conformance.test_concurrency import queues
from tests.conformance.test_connection import cpu_share
from tests.conftest import StartServer
from tests.support import inspection, pace, wire
from tests.support.inspection import events
from tests.support.launching import limit_descriptors, task_limit


def answered(sock: socket.socket, message: bytes = b"X") -> bool:
    """Tell whether a client gets a reply; False where the server ended the connection instead."""
    try:
        return wire.ask(sock, message) == message
    except ConnectionError:
        return False


def silent(sock: socket.socket, seconds: float = 0.3) -> bool:
    """Tell whether a client that has asked gets nothing, not even an end."""
    sock.settimeout(seconds)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        sock.settimeout(wire.patience)


@pytest.mark.plain
@pytest.mark.core
def test_connection_limit_queues(start: StartServer, room: Callable[[int], int]) -> None:
    server = start(max_connections=2)
    if room(2) < 2:
        assert queues(server.address, room(2))
        return
    first, second = wire.connect(server.address), wire.connect(server.address)
    assert answered(first)
    assert answered(second)
    third = wire.connect(server.address)  # by the kernel, which queues it
    third.sendall(b"X")
    assert silent(third)
    assert answered(first)
    assert wire.finish(first) == b""
    assert wire.read_exactly(third, 1) == b"X"
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["rejected"] == 0
    assert server.stopped["connections"] == 3


@pytest.mark.plain
def test_connection_limit_rejects(start: StartServer, room: Callable[[int], int]) -> None:
    if room(3) < 3:  # it cannot turn anyone away while it serves someone
        assert queues(start(overload="reject").address, room(3))
        return
    server = start(max_connections=2, overload="reject")
    first, second = wire.connect(server.address), wire.connect(server.address)
    assert answered(first)
    assert answered(second)
    third = wire.connect(server.address)
    third.sendall(b"X")
    begun = time.monotonic()
    assert wire.read_to_end(third) == b"", "an echo server sends nothing that it was not sent"
    assert pace.within(time.monotonic() - begun, 1)
    third.close()
    assert answered(first)
    assert wire.finish(first) == b""
    assert wire.eventually(lambda: wire.served(server.address))
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["rejected"] >= 1
    assert server.stopped["bytes_in"] == server.stopped["bytes_out"]


@pytest.mark.plain
def test_rejecting_many_leaves_nothing_behind(
    start: StartServer, room: Callable[[int], int]
) -> None:
    if room(3) < 3:  # it cannot turn anyone away while it serves someone
        assert queues(start(overload="reject").address, room(3))
        return
    server = start(max_connections=1, overload="reject")
    first = wire.connect(server.address)
    assert answered(first)
    before = inspection.settled(server.pid)
    for _ in range(200):
        # Beyond the number that is seen off gently, they are reset.
        with suppress(ConnectionResetError):
            wire.connect(server.address)
    crowd = [sock for sock in wire.opened if sock is not first]
    for sock in crowd:
        with suppress(OSError):
            assert wire.read_to_end(sock) == b""
    assert wire.eventually(lambda: inspection.state(server.pid) == before)
    for sock in crowd:
        sock.close()
    assert answered(first)


def test_idle_timeout(start: StartServer) -> None:
    server = start(idle_timeout=0.6)
    idle, lively = wire.connect(server.address), wire.connect(server.address)
    begun = time.monotonic()
    assert answered(idle)
    idle.settimeout(0.05)
    while time.monotonic() - begun < wire.patience:
        assert answered(lively), "a connection that talks is not idle"
        try:
            assert idle.recv(1) == b""
            break
        except TimeoutError:
            continue
    elapsed = time.monotonic() - begun
    assert elapsed >= 0.6
    assert pace.within(elapsed, 3)
    assert answered(lively)
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["idle_timeouts"] == 1


def test_write_timeout(start: StartServer) -> None:
    data = wire.capitals(16 << 20)
    server = start(write_timeout=0.5)
    begun = time.monotonic()
    deaf = wire.connect(server.address, receive_buffer=65536)
    with suppress(ConnectionError):  # where we are slow, it comes meanwhile
        wire.push_until_blocked(deaf, data)
        assert wire.eventually(lambda: _was_reset(deaf)), "it reads nothing, and still lives"
    elapsed = time.monotonic() - begun
    assert elapsed >= 0.5
    assert pace.within(elapsed, 3)
    assert wire.served(server.address)
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["write_timeouts"] == 1


def _was_reset(sock: socket.socket) -> bool:
    """Ask the kernel, reading nothing: reading would make room."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in {errno.ECONNRESET, errno.EPIPE}


def test_a_slow_reader_is_not_timed_out(start: StartServer) -> None:
    """The write timeout is for peers that take nothing, not for those that take little."""
    server = start(write_timeout=0.5)
    data = wire.capitals(12 << 20)
    with wire.connect(server.address, receive_buffer=65536) as slow, wire.sending(slow, data):
        received = bytearray()
        began = time.monotonic()
        while len(received) < len(data):
            piece = slow.recv(256 * 1024)
            assert piece, "cut off"
            received += piece
            if time.monotonic() - began < 2:
                time.sleep(0.05)  # being slow is what is tested
        assert not wire.difference(bytes(received), data)


@pytest.mark.core
def test_who_comes_after_one_that_was_seen_off(start: StartServer) -> None:
    """It may well have the same descriptor, on which a second of patience is still running."""
    server = start(idle_timeout=0.5)
    with wire.connect(server.address) as sock:
        assert wire.ask(sock, b"X") == b"X"
        assert wire.read_to_end(sock) == b"", "half a second of silence"
    with wire.connect(server.address) as sock:
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            assert wire.ask(sock, b"STILL HERE") == b"STILL HERE"
            time.sleep(0.1)  # being served for as long as that is what is tested
        assert wire.finish(sock) == b""


@pytest.mark.plain
def test_descriptors_run_out(start: StartServer, room: Callable[[int], int]) -> None:
    server = start(max_connections=1000)
    if room(100) < 100:  # too few at a time to run out of descriptors
        assert queues(server.address, room(100))
        return
    assert wire.served(server.address)
    serving = inspection.servers(server.pid)
    for pid in serving:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
    clients = [wire.connect(server.address) for _ in range(100 * len(serving))]
    for sock in clients:
        sock.sendall(b"X")
    lucky = [sock for sock in clients[:20] if wire.read_exactly(sock, 1) == b"X"]
    assert len(lucky) == 20
    assert cpu_share(server.pid) < 0.10, "it spins"
    warnings = events(server, "accept_paused")
    assert len(warnings) <= 4 * len(serving), "at most one line a second"
    for sock in clients:  # those in front leave; those behind them are served, from the queue
        assert sock in lucky or wire.read_exactly(sock, 1) == b"X"
        assert wire.finish(sock) == b""
        sock.close()
    assert wire.served(server.address)
    assert server.stop() == 0


def test_no_thread_or_process_can_be_started(
    start: StartServer, room: Callable[[int], int]
) -> None:
    """Only the client that nothing could be started for is closed."""
    server = start()
    assert wire.served(server.address)
    quiet = inspection.settled(server.pid)
    with wire.connect(server.address) as sock:
        assert answered(sock)
        busy = inspection.state(server.pid)
    one_each = busy.threads + busy.children > quiet.threads + quiet.children
    assert inspection.settled(server.pid) == quiet
    with task_limit([one.pid for one in inspection.tree(server.pid)], spare=3):
        clients = [wire.connect(server.address) for _ in range(room(8))]
        served = [sock for sock in clients if answered(sock)]
        assert served
        for sock in served:
            assert answered(sock, b"STILL HERE")
        assert one_each == (len(served) < len(clients))
        if one_each:
            assert wire.eventually(lambda: events(server, "client_refused"))
            assert wire.finish(served[0]) == b""
            served[0].close()
            assert wire.eventually(lambda: wire.served(server.address))
        assert server.process.poll() is None
    for sock in clients:
        sock.close()
    assert wire.served(server.address)
    assert server.stop() == 0
    assert server.stopped is not None
    assert (server.stopped["refused"] > 0) == one_each


@pytest.mark.plain
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to raise the limit again")
def test_recovers_within_a_second_when_descriptors_come_back(start: StartServer) -> None:
    server = start(max_connections=1000)
    assert wire.served(server.address)
    inspection.settled(server.pid)
    serving = inspection.servers(server.pid)
    for pid in serving:
        limit_descriptors(pid)
    client = wire.connect(server.address)
    client.sendall(b"X")
    paused = wire.eventually(lambda: events(server, "accept_paused"))
    for pid in serving:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1000, 20000))
    begun = time.monotonic()
    assert wire.read_exactly(client, 1) == b"X"
    assert paused
    assert pace.within(time.monotonic() - begun, 1.5)


@pytest.mark.plain
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to raise the limit again")
def test_a_drain_without_descriptors_serves_the_queue_with_those_that_come_back(
    start: StartServer, concurrency: Callable[..., int | None]
) -> None:
    """Where none comes back, the clients in the queue are counted."""
    if concurrency() is not None:
        pytest.skip("accepts nobody beyond them")
    server = start(max_connections=1000, drain_timeout=20)
    assert wire.served(server.address)
    inspection.settled(server.pid)
    serving = inspection.servers(server.pid)
    before = sum(len(inspection.descriptors(pid)) for pid in serving)
    client = wire.connect(server.address)
    assert answered(client)
    inspection.settled(server.pid)  # a child may answer before its parent has closed its copy
    raise_on_no_data = sum(len(inspection.descriptors(pid)) for pid in serving) > before
    for pid in serving:
        limit_descriptors(pid)
    queued = [wire.connect(server.address) for _ in range(3)]
    for sock in queued:
        sock.sendall(b"X")
    assert wire.eventually(lambda: events(server, "accept_paused"))
    os.kill(server.pid, signal.SIGTERM)
    assert wire.read_to_end(client) == b""
    client.close()
    if raise_on_no_data:
        for sock in queued:
            assert wire.read_to_end(sock) == b"X"
            sock.close()
    assert server.wait() == 0
    assert server.stopped is not None
    if len(serving) == 1:  # of several, none knows that it is the last
        assert server.stopped["unserved"] == (0 if raise_on_no_data else len(queued))


@pytest.mark.plain
def test_concurrency_is_what_the_backend_says(
    start: StartServer, concurrency: Callable[..., int | None]
) -> None:
    bound = concurrency(pool_size=2)
    if bound is None:
        pytest.skip("holds as many as are allowed")
    server = start(**({"pool_size": 2} if bound != concurrency() else {}))
    inside = [wire.connect(server.address) for _ in range(bound)]
    assert all(answered(sock) for sock in inside)
    waiting = wire.connect(server.address)
    waiting.sendall(b"X")
    assert silent(waiting)
    assert server.stop() == 0
    try:  # it was queued when the drain began, and there was no slot for it
        assert wire.read_to_end(waiting) in {b"", b"X"}
    except ConnectionResetError:
        assert server.stopped is not None
        assert server.stopped["unserved"] == 1
