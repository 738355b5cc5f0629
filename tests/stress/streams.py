"""Faults of single streams: how they are cut, how they end, and how fast they are read."""

import select
import socket
import time
from contextlib import suppress

from tests.stress.arena import FRAME, KIB, MIB, Arena, assert_prefix, frames
from tests.stress.model import fault
from tests.support import pace, wire

CONTROLS = "tests/stress/controls.py"


def control(name: str, **settings: object) -> dict[str, object]:
    """Return the settings of a server with a defect."""
    return {"backend": f"{CONTROLS}:{name}", **settings}


@fault(1, "RST mid-transfer", counts={"resets": None}, control=control("DiesOfReset"), fast=True)
def rst_mid_transfer(arena: Arena) -> str:
    """Clients send, read a part of the reply, and reset."""
    count = arena.size(200, 10)
    for number in range(count):
        sock = arena.connect()
        with suppress(TimeoutError):
            sock.settimeout(0.2)
            sock.sendall(frames(number, 64 * KIB))
        sock.settimeout(wire.patience)
        assert_prefix(wire.read_exactly(sock, 3 * FRAME), number)
        wire.reset(sock)
    assert wire.eventually(arena.served)
    return f"{count} resets"


@fault(
    2,
    "never-reading peer",
    settings={"write_timeout": 1.0},
    counts={"write_timeouts": 1},
    control=control("WaitsForEver"),
    fast=True,
)
def never_reading(arena: Arena) -> str:
    """A client sends and reads nothing: it is cut when its time is over."""
    begun = time.monotonic()
    sock = arena.connect(receive_buffer=16 * KIB)
    with suppress(ConnectionError):
        wire.push_until_blocked(sock, frames(0, 16 * MIB))
        assert wire.eventually(lambda: _broken(sock), 8), "it is still waited for"
    return f"cut after {time.monotonic() - begun:.1f} s"


def _broken(sock: socket.socket) -> bool:
    try:
        sock.setblocking(False)
        sock.send(b"?")
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


@fault(3, "one byte a second", settings={"idle_timeout": 3.0}, control=control("Impatient"))
def one_byte_a_second(arena: Arena) -> str:
    """Each byte is answered when it comes, and the idle timeout restarts."""
    with arena.connect() as sock:
        worst = 0.0
        for number in range(arena.size(6, 4)):
            begun = time.monotonic()
            assert wire.ask(sock, bytes([number])) == bytes([number])
            worst = max(worst, time.monotonic() - begun)
            time.sleep(1.0)
        assert pace.within(worst, 1)
        assert wire.finish(sock) == b""
    return f"answered in {worst * 1000:.0f} ms"


@fault(
    4,
    "idle hoard up to the limit",
    settings={"max_connections": 200},
    counts={"rejected": 0},
    control=control("StallsWhenFull", max_connections=200),
    fast=True,
)
def idle_hoard(arena: Arena) -> str:
    """Every slot is held in silence; the next client waits, and is served when one leaves."""
    bound = min(arena.setting("max_connections"), arena.cell.room or 10_000)
    hoard = [arena.connect() for _ in range(bound - (arena.canary is not None))]
    for sock in hoard:
        assert wire.ask(sock, b"mine") == b"mine"
    late = arena.connect()
    with wire.sending(late, b"room?"):
        for _ in range(10):
            assert wire.ask(hoard[0], b"still") == b"still"
        assert not select.select([late], [], [], 0.1)[0], "there was room for one more"
        hoard[0].close()
    assert wire.read_exactly(late, 5) == b"room?"
    arena.close(hoard)
    return f"{len(hoard)} held"


@fault(5, "half-close after 1 MiB", counts={"resets": 0}, control=control("NoHalfClose"), fast=True)
def half_close(arena: Arena) -> str:
    """All of it comes back, and then the end."""
    size = arena.size(MIB, 256 * KIB)
    with arena.connect() as sock, wire.sending(sock, frames(1, size)):
        assert_prefix(wire.read_exactly(sock, size), 1)
        assert wire.finish(sock) == b""
    with arena.connect(receive_buffer=16 * KIB) as sock:
        # More than the kernel takes: when the FIN comes, much is still to be read.
        sent = wire.push_until_blocked(sock, frames(2, 32 * MIB))
        assert sent < 32 * MIB
        received = wire.finish(sock)
        assert len(received) == sent
        assert_prefix(received, 2)
    return "exact"


@fault(6, "connect + FIN", counts={"resets": 0}, control=control("LeaksConnections"), fast=True)
def connect_and_fin(arena: Arena) -> str:
    """Clients come, say nothing, and end."""
    count = arena.size(1000, 30)
    for _ in range(count):
        with arena.connect() as sock:
            assert wire.finish(sock) == b""
        wire.opened.pop()
    return f"{count} visits"


@fault(7, "1-byte segments", control=control("OneRecvOneReply"), fast=True)
def one_byte_segments(arena: Arena) -> str:
    """A stream in pieces of one byte comes back whole."""
    data = frames(3, arena.size(8192, 1024))
    with arena.connect() as sock:
        with wire.sending(sock, b""):
            for value in data:
                sock.sendall(bytes([value]))
        assert_prefix(wire.read_exactly(sock, len(data)), 3)
        assert wire.finish(sock) == b""
    return f"{len(data):,} segments"


@fault(8, "1 GiB stream", control=control("KeepsAll"), timeout=300)
def large_stream(arena: Arena) -> str:
    """Memory stays as it is, however much goes through."""
    size, step = arena.size(1 << 30, 64 * MIB), 4 * MIB
    before, most = arena.rss(), 0
    begun = time.monotonic()
    with arena.connect() as sock:
        for offset in range(0, size, step):
            data = frames(4, step, offset)
            with wire.sending(sock, data):
                received = wire.read_exactly(sock, step)
            assert received == data or not wire.difference(received, data)
            if offset % (16 * step) == 0:
                most = max(most, arena.rss() - before)
        most = max(most, arena.rss() - before)
        assert wire.finish(sock) == b""
    assert most < 32 * MIB, f"{most >> 20} MiB more"
    return f"{size / MIB / (time.monotonic() - begun):,.0f} MiB/s, RSS +{most / MIB:.1f} MiB"


@fault(9, "64 MiB outstanding, full duplex", control=control("ClosesHard"), timeout=200)
def full_duplex(arena: Arena) -> str:
    """Every buffer on the way is full before the first byte is read."""
    size = arena.size(64 * MIB, 8 * MIB)
    data = frames(5, size)
    with arena.connect(receive_buffer=64 * KIB) as sock:
        sent = wire.push_until_blocked(sock, data)
        with wire.sending(sock, data[sent:]):
            assert not wire.difference(wire.read_exactly(sock, size), data)
        assert wire.finish(sock) == b""
    return f"{sent / MIB:.1f} MiB unread at first"


@fault(40, "urgent data", tls=False, control=control("EndsAtUrgent"), fast=True)
def urgent_data(arena: Arena) -> str:
    """A byte out of band is left out of the stream, which goes on (tcp(7))."""
    with arena.connect() as sock:
        sock.sendall(b"before ")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"after")
        assert wire.read_exactly(sock, 12) == b"before after"
        assert wire.finish(sock) == b""
    return "stream intact"


@fault(
    42,
    "input that crosses the server's FIN",
    settings={"idle_timeout": 0.5},
    counts={"bytes_discarded": None, "resets": 0},
    canary=False,
    control=control("ClosesHard"),
    fast=True,
)
def crossing(arena: Arena) -> str:
    """The reply is an exact prefix, then comes the end, and what was too late is counted."""
    sock = arena.connect()
    assert wire.ask(sock, b"in time") == b"in time"
    assert wire.read_to_end(sock) == b""
    sock.sendall(b"too late")
    sock.shutdown(socket.SHUT_WR)
    assert wire.eventually(lambda: _over(sock))
    return "8 bytes counted"


def _over(sock: socket.socket) -> bool:
    """The other side has closed, and not reset, after all was acknowledged."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] in {6, 7}  # TIME_WAIT, CLOSE
