"""Many clients at a time: each gets its own bytes, and none waits for another."""

from collections.abc import Callable

from echoserver import SpawnedServer
from tests import wire
from tests.conftest import StartServer

CLIENTS = 400


def test_silent_client_does_not_block_another(server: SpawnedServer) -> None:
    with wire.connect(server.address), wire.connect(server.address) as half:
        half.sendall(b"half a line")
        assert wire.served(server.address)


def test_interleaved_turns(server: SpawnedServer) -> None:
    with wire.connect(server.address) as one, wire.connect(server.address) as two:
        for turn in range(50):
            message = b"one, turn %d" % turn
            one.sendall(message)
            assert wire.ask(two, b"two") == b"two"
            assert wire.read_exactly(one, len(message)) == message


def test_no_cross_talk_among_simultaneous_senders(server: SpawnedServer) -> None:
    socks = [wire.connect(server.address) for _ in range(32)]
    for turn in range(10):
        messages = [wire.content(2000, seed=turn * 100 + number) for number in range(len(socks))]
        for sock, message in zip(socks, messages, strict=True):
            sock.sendall(message)
        for sock, message in zip(socks, messages, strict=True):
            assert wire.read_exactly(sock, len(message)) == message
    for sock in socks:
        assert wire.finish(sock) == b""
        sock.close()


def test_400_connections_at_once(
    start: StartServer, concurrency: Callable[..., int | None]
) -> None:
    """All are served at once; where a backend holds fewer, the others queue and lose nothing."""
    server = start()
    at_once = min(CLIENTS, concurrency() or CLIENTS)
    socks = [wire.connect(server.address) for _ in range(CLIENTS)]
    for turn in range(3):
        for number, sock in enumerate(socks[:at_once]):
            sock.sendall(b"turn %d of client %d" % (turn, number))
        for number, sock in enumerate(socks[:at_once]):
            message = b"turn %d of client %d" % (turn, number)
            assert wire.read_exactly(sock, len(message)) == message
    for number, sock in enumerate(socks):
        message = b"last words of client %d" % number
        sock.sendall(message)
        assert wire.finish(sock) == message
        sock.close()
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["connections"] == CLIENTS
