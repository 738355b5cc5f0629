"""Faults of the network between: loss, delay, small packets, black holes; in one of its own."""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.stress.arena import KIB, MIB, Arena, assert_prefix, frames
from tests.stress.model import fault
from tests.stress.streams import control
from tests.support import inspection, wire

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
COMMON = {"namespace": True, "canary": False}


def own_network() -> None:
    """Give the calling thread, and what it starts, a network with nothing but loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        pytest.skip(f"no network of its own: {os.strerror(ctypes.get_errno())}")
    shell("ip link set lo up")


def shell(command: str) -> None:
    """Run a command in that network."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command}: {done.stderr.strip()}")


def stream(arena: Arena, size: int) -> float:
    """Send and read so much; return how long it took."""
    begun = time.monotonic()
    with arena.connect() as sock:
        with wire.sending(sock, frames(7, size)):
            assert_prefix(wire.read_exactly(sock, size), 7)
        assert wire.finish(sock) == b""
    return time.monotonic() - begun


@fault(32, "5 % packet loss", **COMMON, needs=("nft", "ip"), control=control("ClosesHard"))
def loss(arena: Arena) -> str:
    """What is lost on the way comes all the same."""
    shell("ip link set lo mtu 1500")  # or a few packets would be all
    shell("nft add table inet lossy")
    shell("nft add chain inet lossy in { type filter hook input priority 0 ; }")
    shell("nft add rule inet lossy in tcp dport != 0 numgen random mod 100 < 5 counter drop")
    sent = lost = 0
    least = arena.size(20, 3)
    while lost < least:
        stream(arena, 256 * KIB)
        sent += 256
        assert sent < 64 * KIB, f"{lost} packets lost of 64 MiB"
        lost = _dropped()
    return f"{sent} KiB exact, {lost} packets lost"


def _dropped() -> int:
    listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return int(listed.stdout.split("packets ")[1].split()[0])


@contextmanager
def relay(delay: float, jitter: float) -> Iterator[None]:
    """Let packets to 10.99.0.2 come back, late and out of order, as if they were from there.

    Source and destination change places, which leaves every checksum right: a client of
    10.99.0.2 so reaches what listens on 10.99.0.1.
    """
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", b"late0", _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        pytest.skip(f"no TUN device: {error.strerror}")
    shell("ip addr add 10.99.0.1/24 dev late0")
    shell("ip link set late0 up")
    over = threading.Event()

    def run() -> None:
        chance = random.Random(1)
        late: list[tuple[float, int, bytes]] = []
        count = 0
        while not over.is_set():
            wait = max(0.0, late[0][0] - time.monotonic()) if late else 0.05
            if select.select([tun], [], [], min(wait, 0.05))[0]:
                with suppress(BlockingIOError):
                    packet = os.read(tun, 65536)
                    if packet[0] >> 4 == 4:
                        turned = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                        due = time.monotonic() + delay + chance.random() * jitter
                        count += 1
                        heapq.heappush(late, (due, count, turned))
            while late and late[0][0] <= time.monotonic():
                with suppress(OSError):
                    os.write(tun, heapq.heappop(late)[2])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)
        os.close(tun)


@fault(
    33,
    "delay and reordering",
    **COMMON,
    settings={"host": "0.0.0.0"},
    needs=("ip",),
    control=control("ClosesHard"),
)
def late_and_mixed(arena: Arena) -> str:
    """A way on which packets overtake each other."""
    size = arena.size(MIB, 128 * KIB)
    port = arena.address[1]
    with relay(0.01, 0.01):
        begun = time.monotonic()
        with wire.connect(("10.99.0.2", port)) as sock:
            with wire.sending(sock, frames(7, size)):
                assert_prefix(wire.read_exactly(sock, size), 7)
            assert wire.finish(sock) == b""
        took = time.monotonic() - begun
    return f"{size / MIB / took:.1f} MiB/s at 20-40 ms, out of order"


@fault(34, "MTU 600, bandwidth cap", **COMMON, needs=("ip", "tc"), control=control("ClosesHard"))
def narrow(arena: Arena) -> str:
    """A narrow way."""
    shell("ip link set lo mtu 600")
    shell("tc qdisc add dev lo root tbf rate 40mbit burst 32kb latency 50ms")
    size = arena.size(4 * MIB, 256 * KIB)
    return f"{size / MIB / stream(arena, size):.1f} MiB/s"


@fault(
    35,
    "blackhole, then heal",
    **COMMON,
    settings={"idle_timeout": 3.0, "write_timeout": 3.0},
    needs=("nft", "ip"),
    control=control("WaitsForEver", idle_timeout=0.0, write_timeout=0.0),
)
def black_hole(arena: Arena) -> str:
    """Peers that are gone without a word are let go; who comes after the healing is served."""
    count = arena.crowd(10)
    lost = [arena.connect() for _ in range(count)]
    for number, sock in enumerate(lost):
        assert wire.ask(sock, frames(number, 100)) == frames(number, 100)
    before = arena.pids
    shell("nft add table inet hole")
    shell("nft add chain inet hole in { type filter hook input priority 0 ; }")
    shell("nft add rule inet hole in drop")
    begun = time.monotonic()
    held = _descriptors(before)
    # Of `process`, each client's is another process.
    released = wire.eventually(
        lambda: _descriptors(before) <= held - count or len(arena.pids) <= len(before) - count, 12
    )
    took = time.monotonic() - begun
    shell("nft delete table inet hole")
    assert released
    assert wire.eventually(arena.served)
    for sock in lost:
        sock.settimeout(wire.patience)
        with suppress(ConnectionError):
            assert wire.read_to_end(sock) == b"", "after the healing it hears of its end"
    return f"let go within {took:.0f} s"


def _descriptors(pids: list[int]) -> int:
    found = 0
    for pid in pids:
        with suppress(OSError):
            found += len(inspection.descriptors(pid))
    return found
