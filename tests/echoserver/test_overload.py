"""At the limit: who is shed, who is not, and memory."""

import select
import socket
import time
from contextlib import suppress
from typing import Any

import psutil
import pytest

from clients.tls import Trust
from tests.support import inspection, wire
from tests.support.certificates import SERVERS
from tests.support.launching import serving


@pytest.mark.ci
@pytest.mark.parametrize("processes", [None, 2])
def test_the_most_silent_make_room(exemplar: str, processes: int | None) -> None:
    if exemplar == "iterative":
        pytest.skip("it serves one client at a time, and accepts none meanwhile")
    with serving(exemplar, max_connections=4, overload="shed-idle", workers=processes) as server:
        socks = [wire.connect(server.address) for _ in range(4)]
        assert all(wire.ask(sock, b"hello") == b"hello" for sock in socks)
        newcomer = wire.connect(server.address)
        newcomer.sendall(b"room?")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:  # two of them talk on
            assert wire.ask(socks[1], b"talk") == b"talk"
            assert wire.ask(socks[3], b"talk") == b"talk"
            time.sleep(0.05)
        assert wire.read_exactly(newcomer, 5) == b"room?"
        ended = [sock for sock in socks if _has_ended(sock)]
        # Of two workers, either may make room.
        assert len(ended) in ({1} if processes is None else {1, 2})
        assert socks[1] not in ended
        assert socks[3] not in ended
        for sock in ended:
            assert wire.read_to_end(sock) == b""
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["shed"] == len(ended)


def _has_ended(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0]) and sock.recv(1, socket.MSG_PEEK) == b""


@pytest.mark.ci
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("process", marks=pytest.mark.ci),
        "selector",
        pytest.param("thread", marks=pytest.mark.ci),
        pytest.param("gevent", marks=pytest.mark.ci),
    ],
)
def test_who_never_says_hello_makes_room(model: str) -> None:
    settings = {"tls_cert": SERVERS.issue(), "handshake_timeout": 60}
    with serving(model, max_connections=3, overload="shed-idle", **settings) as server:
        stalled = [wire.connect(server.address) for _ in range(3)]
        newcomer = wire.Secured(wire.connect(server.address), Trust(SERVERS.cert))
        newcomer.sendall(b"room?")
        assert newcomer.recv(5) == b"room?"
        newcomer.close()
        assert any(_has_ended(sock) for sock in stalled)
        assert server.stop() == 0
        assert server.stopped is not None
        assert 1 <= server.stopped["shed"] <= 3  # some take longer to leave than others


@pytest.mark.ci
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("selector", marks=pytest.mark.ci),
        pytest.param("gevent", marks=pytest.mark.ci),
        "thread",
    ],
)
def test_who_waits_for_an_answer_is_not_shed(model: str) -> None:
    sleeping = {"handler": "sleep", "handler_option": {"seconds": 3}}
    with serving(model, max_connections=2, overload="shed-idle", **sleeping) as server:
        asks, idles = wire.connect(server.address), wire.connect(server.address)
        asks.sendall(b"slow")
        newcomer = wire.connect(server.address)
        assert wire.read_to_end(idles) == b""
        assert wire.read_exactly(asks, 4) == b"slow"
        # Nobody is owed anything now, and everybody makes room in turn, the most silent first.
        another, one_more = wire.connect(server.address), wire.connect(server.address)
        assert wire.read_to_end(newcomer) == b""
        assert wire.eventually(lambda: _has_ended(asks) or _has_ended(another))
        another.close()
        one_more.close()


@pytest.mark.ci
def test_who_is_to_make_room_has_the_time_its_answer_takes() -> None:
    """Of `process`, only the child knows whether it owes anything."""
    sleeping = {"handler": "sleep", "handler_option": {"seconds": 4}, "drain_timeout": 1}
    with serving("process", max_connections=1, overload="shed-idle", **sleeping) as server:
        asks = wire.connect(server.address)
        asks.sendall(b"slow")
        newcomer = wire.connect(server.address)
        newcomer.sendall(b"room?")
        assert wire.read_to_end(asks) == b"slow"
        asks.close()
        assert wire.read_exactly(newcomer, 5) == b"room?"
        newcomer.close()
        assert server.stop() == 0
        assert server.stopped is not None
        assert (server.stopped["shed"], server.stopped["cut"]) == (1, 0)


@pytest.mark.ci
def test_who_is_owed_something_is_not_shed() -> None:
    with serving("selector", max_connections=1, overload="shed-idle") as server:
        deaf = wire.connect(server.address, receive_buffer=4096)
        data = wire.content(4 << 20)
        sent = wire.push_until_blocked(deaf, data)
        newcomer = wire.connect(server.address)
        newcomer.sendall(b"room?")
        newcomer.settimeout(2.5)
        with pytest.raises(TimeoutError):
            newcomer.recv(5)
        deaf.shutdown(socket.SHUT_WR)
        assert not wire.difference(wire.read_to_end(deaf), data[:sent])


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_memory_is_bounded_by_the_limit(tls: bool, exemplar: str) -> None:  # noqa: FBT001 - parametrised
    """Peers that read nothing, as many as there may be: see docs/operating.md.

    They send in turns, so all of them are served at the same time, and what each once needed for
    a moment adds up.
    """
    count, data = 24 if exemplar == "process" else 100, wire.content(1 << 16)
    settings: dict[str, Any] = {"tls_cert": SERVERS.issue()} if tls else {}
    if exemplar == "pool":
        settings["pool_size"] = count
    with serving(exemplar, max_connections=count, **settings) as server:
        before = _memory(server.pid)
        wire.trust = Trust(SERVERS.cert) if tls else None
        try:
            sending = [wire.connect(server.address, receive_buffer=4096) for _ in range(count)]
            for sock in sending:
                sock.settimeout(0.05)
            while sending:
                sending = [sock for sock in sending if _takes(sock, data)]
        finally:
            wire.trust = None
        each = (_memory(server.pid) - before) / count
        bound = {"process": 1024} if not tls else {"process": 2048}
        assert each / 1024 < bound.get(exemplar, 512 if tls else 160), (
            f"{each / 1024:.0f} KiB for each"
        )


def _takes(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.sendall(data)
    except (TimeoutError, ConnectionError):
        return False
    return True


def _memory(pid: int) -> int:
    """Return what a server's processes hold that is theirs alone."""
    total = 0
    for one in inspection.tree(pid):
        with suppress(psutil.Error):
            total += one.memory_full_info().uss
    return total
