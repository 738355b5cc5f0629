"""How connections end, well and badly; and what is left of them."""

import gc
import signal
import time
from collections.abc import Callable

import pytest

from echoserver import SpawnedServer
from loadtest.machine.sockets import kernel_room
from tests.conftest import StartServer
from tests.support import inspection, wire

MIB = 1 << 20


def test_empty_connection(server: SpawnedServer) -> None:
    with wire.connect(server.address) as sock:
        assert wire.finish(sock) == b""
    assert wire.served(server.address)


def test_the_end_needs_no_other_client(server: SpawnedServer) -> None:
    """A parent that kept the accepted socket would only let go of it at the next accept."""
    with wire.connect(server.address) as sock:
        assert wire.ask(sock, b"HELLO") == b"HELLO"
        assert wire.finish(sock) == b""


@pytest.mark.core
@pytest.mark.tcp
def test_rst_mid_transfer(server: SpawnedServer) -> None:
    assert wire.served(server.address)
    quiet = inspection.settled(server.pid)
    for _ in range(10):
        sock = wire.connect(server.address)
        sock.sendall(wire.capitals(MIB // 4))
        assert sock.recv(1)
        wire.reset(sock)
    assert wire.eventually(lambda: inspection.state(server.pid) == quiet)
    assert wire.served(server.address)
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["resets"] == 10


def test_rst_before_accept(server: SpawnedServer) -> None:
    assert wire.served(server.address)
    inspection.tell_all(server.pid, signal.SIGSTOP)
    try:
        for _ in range(20):
            wire.reset(wire.connect(server.address))
    finally:
        inspection.tell_all(server.pid, signal.SIGCONT)
    assert wire.served(server.address)


def test_peer_vanishes_mid_write(server: SpawnedServer) -> None:
    assert wire.served(server.address)
    quiet = inspection.settled(server.pid)
    for _ in range(5):
        sock = wire.connect(server.address, receive_buffer=65536)
        wire.push_until_blocked(sock, wire.capitals(8 * MIB))
        sock.close()  # with megabytes unread: the kernel resets the connection
    assert wire.eventually(lambda: inspection.state(server.pid) == quiet)
    assert wire.served(server.address)
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["resets"] == 5


def test_64_mib_at_a_peer_that_does_not_read(
    server: SpawnedServer, room: Callable[[int], int]
) -> None:
    data = wire.capitals(max(64 * MIB, kernel_room() + 8 * MIB))
    with (
        wire.connect(server.address, receive_buffer=65536) as greedy,
        wire.connect(server.address) as other,
    ):
        assert wire.ask(greedy, b"1") == b"1"
        alone = room(2) < 2  # then the other one waits, and is served when this one has gone
        assert alone or wire.ask(other, b"2") == b"2"
        before = inspection.rss_bytes(server.pid)
        sent = wire.push_until_blocked(greedy, data)
        assert sent < kernel_room() + MIB, "it reads on, although nobody takes what it owes"
        for turn in range(20):
            assert alone or wire.ask(other, b"TURN %d" % turn) == b"TURN %d" % turn
        assert inspection.rss_bytes(server.pid) - before < 8 * MIB
        with wire.sending(greedy, data[sent:]):
            assert not wire.difference(wire.read_exactly(greedy, len(data)), data)
        assert wire.finish(greedy) == b""
        greedy.close()
        assert wire.ask(other, b"THE OTHER ONE") == b"THE OTHER ONE"


def test_no_cpu_for_idle_and_dead_peers(server: SpawnedServer, room: Callable[[int], int]) -> None:
    for number in range(20):
        gone = wire.connect(server.address)
        gone.sendall(b"X")
        assert gone.recv(1)
        (wire.reset if number % 2 else wire.finish)(gone)
        gone.close()
    idle = [wire.connect(server.address) for _ in range(room(10))]
    for sock in idle:
        assert wire.ask(sock, b"X") == b"X"
    assert cpu_share(server.pid) < 0.05
    deaf = [wire.connect(server.address, receive_buffer=65536) for _ in range(3)]
    for sock in deaf:
        wire.push_until_blocked(sock, wire.capitals(8 * MIB))
    assert cpu_share(server.pid) < 0.05
    for sock in (*idle, *deaf):
        sock.close()
    assert wire.served(server.address)


def cpu_share(pid: int, seconds: float = 0.6) -> float:
    """Return the share of a core that a server uses; the better of two looks."""
    shares = []
    for _ in range(2):
        begun, used = time.monotonic(), inspection.cpu_seconds(pid)
        time.sleep(seconds)  # the measurement itself: nothing is waited for
        shares.append((inspection.cpu_seconds(pid) - used) / (time.monotonic() - begun))
    return min(shares)


def test_churn_leaves_nothing_behind(start: StartServer) -> None:
    server = start()

    def cycle() -> None:
        for number in range(1000):
            with wire.connect(server.address) as sock:
                message = b"CLIENT %d" % number
                assert wire.ask(sock, message) == message

    def back_to(quiet: inspection.State) -> bool:
        return wire.eventually(lambda: inspection.state(server.pid) == quiet)

    assert wire.served(server.address)
    quiet = inspection.settled(server.pid)
    cycle()
    assert back_to(quiet), f"{inspection.state(server.pid)}, was {quiet}"
    memory = inspection.rss_bytes(server.pid)
    cycle()
    assert back_to(quiet), f"{inspection.state(server.pid)}, was {quiet}"
    gc.collect()
    assert inspection.rss_bytes(server.pid) < 1.05 * memory
    assert quiet.zombies == 0
