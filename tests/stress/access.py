"""Faults at the door: TLS that is none, certificates that are not the right ones, PROXY headers."""

import socket
import struct
import time
from contextlib import suppress

from clients.tls import TlsError, TlsSocket, Trust
from tests.stress.arena import MIB, Arena
from tests.stress.model import ITS_OWN, fault
from tests.stress.streams import control
from tests.support import pace, wire
from tests.support.certificates import CLIENTS, SERVERS, STRANGERS

TLS = {"tls_cert": SERVERS.issue()}


@fault(
    36,
    "TLS garbage, plain HTTP to TLS, stalled handshakes",
    settings={**TLS, "max_connections": 3000},
    counts={"tls_failures": None},
    keeps=128,  # the allocator's, after 1,000 handshakes of 50 KiB each; as many again add nothing
    tls=False,
    control=control("ShakesHandsInAccept", tls_cert=SERVERS.issue()),
    fast=True,
    alone=("process", "thread"),  # a thousand of them, which all begin a handshake
)
def no_tls(arena: Arena) -> str:
    """Who does not come to the point delays nobody."""
    for said in (b"GET / HTTP/1.0\r\n\r\n", wire.content(5000)):
        sock = arena.raw()
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            assert len(wire.read_to_end(sock)) < 20
        sock.close()
    count = arena.crowd(arena.size(1000, 30))
    if arena.cell.room is not None:
        count = max(1, count - 1)  # and one who is in earnest
    stalled = _stall(arena, count)
    if arena.canary is None:
        arena.close(stalled)
        assert wire.eventually(arena.served)
        return f"{count} stalled"
    waits = []
    with arena.connect() as sock:
        for _ in range(100):
            begun = time.monotonic()
            assert wire.ask(sock, b"quick?") == b"quick?"
            waits.append(time.monotonic() - begun)
        assert wire.finish(sock) == b""
    arena.close(stalled)
    # What the allocator keeps grows for a while, and not for ever.
    sizes = [arena.rss_at_rest()]
    for _ in range(3):
        arena.close(_stall(arena, count))
        sizes.append(arena.rss_at_rest())
    grown = sizes[-1] - sizes[-2]
    assert grown < 24 * MIB, f"{grown >> 20} MiB more for as many again"
    p99 = sorted(waits)[98]
    loops = {"selector", "selector-pool", "coroutine", "gevent", "asyncio", "uvloop"}
    if arena.full and arena.cell.backend in loops:
        assert pace.within(p99, 0.1), f"p99 {p99 * 1000:.0f} ms"
    return f"{count} stalled, p99 {p99 * 1000:.1f} ms"


def _stall(arena: Arena, count: int) -> list[socket.socket]:
    """Begin so many handshakes, and leave them at that."""
    stalled = []
    for _ in range(count):
        sock = arena.raw()
        sock.sendall(b"\x16\x03\x01\x02\x00")
        stalled.append(sock)
    return stalled


@fault(
    37,
    "missing, expired, foreign client certificate",
    settings={**TLS, "tls_client_ca": CLIENTS.cert},
    **ITS_OWN,
    tls=False,
    control={"tls_client_ca": None},
    fast=True,
)
def client_certificates(arena: Arena) -> str:
    """Not one byte of an application's."""
    server = arena.start()
    wrong = (None, CLIENTS.issue(expired=True), STRANGERS.issue())
    for certificate in wrong:
        sock = arena.raw()
        tls = TlsSocket(sock, Trust(SERVERS.cert, certificate).context(), "127.0.0.1")
        with suppress(TlsError, ConnectionError):
            tls.sendall(b"let me in")
            assert tls.recv(9) == b"", "it got an answer"
    tls = TlsSocket(arena.raw(), Trust(SERVERS.cert, CLIENTS.issue()).context(), "127.0.0.1")
    tls.sendall(b"it is me")
    assert tls.recv(8) == b"it is me"
    tls.close()
    assert server.stop() == 0
    stopped = server.stopped
    assert stopped is not None
    assert (stopped["tls_failures"], stopped["bytes_in"]) == (len(wrong), 8)
    return "0 bytes"


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
GOOD = b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 9999\r\n"


@fault(
    38,
    "PROXY header too long, split, absent, garbage, from anybody",
    settings={"proxy_protocol": True, "proxy_from": "127.0.0.1", "handshake_timeout": 1.0},
    **ITS_OWN,
    control={"proxy_protocol": None, "proxy_from": None},
    fast=True,
)
def proxy_headers(arena: Arena) -> str:
    """Who cannot be believed is not heard; who is slow is."""
    server = arena.start()
    wrong = (
        b"PROXY TCP4 " + b"1" * 200,
        SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 60_000) + bytes(100),
        SIGNATURE + b"\xff" * 50,
        b"hello",
        b"",
    )
    for said in wrong:
        sock = arena.raw()
        sock.sendall(said)
        assert _nothing_but_the_end(sock), said
        sock.close()
    sock = arena.raw(source="127.0.0.2")
    sock.sendall(GOOD)
    assert _nothing_but_the_end(sock)
    sock.close()
    raw = arena.raw()
    for value in GOOD:
        raw.sendall(bytes([value]))
        time.sleep(0.002)  # so that they come one by one
    stream = wire.secured(raw)
    stream.sendall(b"hello")
    assert stream.recv(5) == b"hello"
    stream.close()
    assert server.stop() == 0
    stopped = server.stopped
    assert stopped is not None
    assert (stopped["proxy_failures"], stopped["bytes_in"]) == (len(wrong) + 1, 5)
    return f"{len(wrong) + 1} turned away"


def _nothing_but_the_end(sock: socket.socket) -> bool:
    with suppress(ConnectionResetError):
        return wire.read_to_end(sock) == b""
    return True
