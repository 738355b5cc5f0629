"""Many clients at a time: each gets its own bytes, and none waits for another."""

import select
import threading
import time
from collections.abc import Callable

import pytest

from echoserver import SpawnedServer
from tests.conftest import StartServer
from tests.support import inspection, wire

CLIENTS = 400


def queues(address: wire.Address, room: int) -> bool:
    """Tell whether a client beyond those that a backend has room for waits, and then is served.

    It is what a check expects that needs more room than there is.
    """
    inside = [wire.connect(address) for _ in range(room)]
    assert all(wire.ask(sock, b"INSIDE") == b"INSIDE" for sock in inside)
    waiting = wire.connect(address)
    with wire.sending(waiting, b"WAITING"):
        if select.select([waiting], [], [], 0.2)[0]:
            return False
        for sock in inside:
            assert wire.ask(sock, b"STILL INSIDE") == b"STILL INSIDE"
            assert wire.finish(sock) == b""
            sock.close()
    return wire.finish(waiting) == b"WAITING"


@pytest.mark.core
def test_silent_client_does_not_block_another(
    server: SpawnedServer, room: Callable[[int], int]
) -> None:
    if room(3) < 3:
        assert queues(server.address, room(3))
        return
    with wire.connect(server.address), wire.connect(server.address) as half:
        half.sendall(b"HALF A LINE")
        assert wire.served(server.address)


def test_interleaved_turns(server: SpawnedServer, room: Callable[[int], int]) -> None:
    if room(2) < 2:
        assert queues(server.address, room(2))
        return
    with wire.connect(server.address) as one, wire.connect(server.address) as two:
        for turn in range(50):
            message = b"ONE, TURN %d" % turn
            one.sendall(message)
            assert wire.ask(two, b"TWO") == b"TWO"
            assert wire.read_exactly(one, len(message)) == message


@pytest.mark.core
def test_no_cross_talk_among_simultaneous_senders(
    server: SpawnedServer, room: Callable[[int], int]
) -> None:
    socks = [wire.connect(server.address) for _ in range(room(32))]
    for turn in range(10):
        messages = [wire.capitals(2000, seed=turn * 100 + number) for number in range(len(socks))]
        for sock, message in zip(socks, messages, strict=True):
            sock.sendall(message)
        for sock, message in zip(socks, messages, strict=True):
            assert not wire.difference(wire.read_exactly(sock, len(message)), message)
    for sock in socks:
        assert wire.finish(sock) == b""
        sock.close()


def test_400_connections_at_once(start: StartServer, room: Callable[[int], int]) -> None:
    """All are served at once; where a backend holds fewer, the others queue and lose nothing."""
    server = start()
    at_once = room(CLIENTS)
    socks = [wire.connect(server.address) for _ in range(CLIENTS)]
    for turn in range(3):
        for number, sock in enumerate(socks[:at_once]):
            sock.sendall(b"TURN %d OF CLIENT %d" % (turn, number))
        for number, sock in enumerate(socks[:at_once]):
            message = b"TURN %d OF CLIENT %d" % (turn, number)
            assert wire.read_exactly(sock, len(message)) == message
    for number, sock in enumerate(socks):
        message = b"LAST WORDS OF CLIENT %d" % number
        sock.sendall(message)
        assert wire.finish(sock) == message
        sock.close()
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["connections"] == CLIENTS


def test_ended_clients_are_forgotten_while_others_queue(server: SpawnedServer) -> None:
    """A server that only tidies up when nobody waits never does under load."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            assert wire.served(server.address)

    threads = [threading.Thread(target=come_and_go, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    zombies = []
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        zombies.append(inspection.state(server.pid).zombies)
    stop.set()
    for thread in threads:
        thread.join(wire.patience)
    assert max(zombies) < 30
