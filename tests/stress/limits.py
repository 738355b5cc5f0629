"""Faults of many, and of what runs out: connections, descriptors, processes, memory."""

import os
import resource
import select
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.stress.arena import Arena, frames, skip_unless_root
from tests.stress.model import ITS_OWN, fault
from tests.stress.streams import control
from tests.support import inspection, wire
from tests.support.launching import task_limit


@fault(
    10,
    "50,000 connect/close",
    counts={"resets": 0},
    control=control("LeaksConnections"),
    timeout=400,
)
def connect_close(arena: Arena) -> str:
    """Connections as fast as they come, one after the other."""
    count = arena.size(50_000, 300)
    if arena.cell.tls:
        count = min(count, 300)
    begun = time.monotonic()
    for number in range(count):
        if arena.cell.tls:
            with arena.connect() as sock:
                assert wire.ask(sock, b"x") == b"x"
                assert wire.finish(sock) == b""
            wire.opened.pop()
            continue
        with socket.socket() as sock:
            sock.settimeout(wire.patience)
            # More than one source has ports.
            sock.bind((f"127.0.{1 + number // 20_000}.1", 0))
            sock.connect(arena.address)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    return f"{count / (time.monotonic() - begun):,.0f}/s"


def listen_overflows() -> int:
    """Return how often a queue of clients was full, in this network (netstat, ListenOverflows)."""
    lines = Path("/proc/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(values[names.index("ListenOverflows")])


@fault(
    11,
    "accept-queue overflow",
    # Where the queue ran over, Linux sometimes forgets a client's side of a connection and tells
    # nobody: the server's ends when its patience does.
    settings={"backlog": 8, "idle_timeout": 10},
    canary=False,
    control=control("DiesWhenStopped"),
    fast=True,
)
def queue_overflow(arena: Arena) -> str:
    """The server is stopped, its queue runs over; when it goes on, so do the clients."""
    count, before = 30, listen_overflows()
    arena.tell(signal.SIGSTOP)
    socks = []
    for _ in range(count):
        sock = socket.socket()
        wire.opened.append(sock)
        sock.setblocking(False)
        sock.connect_ex(arena.address)
        socks.append(sock)
    overflown = wire.eventually(lambda: listen_overflows() > before)
    arena.tell(signal.SIGCONT)
    assert overflown, "the queue did not run over"
    waiting = set(socks)
    deadline = time.monotonic() + 20
    while waiting and time.monotonic() < deadline:  # SYNs are repeated after 1, 3, 7 seconds
        for sock in select.select([], list(waiting), [], 1.0)[1]:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            sock.close()
            waiting.discard(sock)
    assert not waiting, f"{len(waiting)} never came in"
    assert arena.served()
    return f"{listen_overflows() - before} overflows, all served"


@fault(12, "RST before accept", canary=False, control=control("DiesOfReset"), fast=True)
def rst_before_accept(arena: Arena) -> str:
    """Clients that are gone before they are accepted."""
    arena.tell(signal.SIGSTOP)
    try:
        for _ in range(100):
            sock = arena.raw()
            sock.send(b"never mind")
            wire.reset(sock)
    finally:
        arena.tell(signal.SIGCONT)
    assert wire.eventually(arena.served)
    return "100 resets"


@fault(
    13,
    "fd exhaustion",
    counts={"accept_errors": None},
    # Of `process`, each child has its own; the others hold fewer than they may open.
    only=lambda backend: backend not in {"iterative", "pool", "process"},
    control=control("SpinsWithoutDescriptors"),
    fast=True,
)
def descriptors_run_out(arena: Arena) -> str:
    """No spin, no flood of lines, and clients are served within a second of the end of it."""
    spare = 6 * (arena.cell.workers or 1)
    for pid in arena.pids:
        used = max(inspection.descriptors(pid)) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 6, used + 6))
    inside = [arena.raw() for _ in range(spare * 2 + 6)]
    assert wire.eventually(lambda: arena.log("accept_paused")), "there were enough"
    lines, seconds = len(arena.server.log), arena.size(2, 1)
    cpu = arena.cpu(seconds)
    said = len(arena.server.log) - lines
    if arena.canary is None:
        assert cpu < 0.05, f"{cpu:.0%} of a CPU"
    else:
        assert cpu < 0.25, f"{cpu:.0%} of a CPU, with the canary's questions"
    assert said <= (seconds + 1) * (arena.cell.workers or 1), f"{said} lines in {seconds} s"
    arena.close(inside)
    begun = time.monotonic()
    assert wire.eventually(arena.served)
    took = time.monotonic() - begun
    assert took < 1.5 * arena.slack, f"recovered after {took:.1f} s"
    return f"CPU {cpu:.1%}, {said} lines in {seconds} s, back in {took * 1000:.0f} ms"


@fault(
    14,
    "fork or thread failure",
    counts={"refused": None},
    only=lambda backend: backend in {"process", "thread"},
    control=control("DiesWithoutThreads"),
    fast=True,
)
def no_more_tasks(arena: Arena) -> str:
    """Nothing can be started for a client: it is closed, and the server lives."""
    with task_limit(arena.pids, spare=3):
        socks = [arena.raw() for _ in range(12)]
        assert wire.eventually(lambda: arena.log("client_refused"))
        arena.close(socks)
    assert wire.eventually(arena.served)
    return "refused, and back"


@fault(
    15,
    "memory cgroup kills a worker",
    workers=True,
    canary=False,
    tls=False,
    control=control("NeverComesBack"),
)
def out_of_memory(arena: Arena) -> str:
    """The kernel kills a worker that has too much memory; another one takes its place."""
    skip_unless_root()
    root, name = Path("/sys/fs/cgroup"), f"echoserver-stress-{os.getpid()}"
    v2 = (root / "cgroup.controllers").exists()
    group = root / name if v2 else root / "memory" / name
    victim = arena.workers()[0]
    try:
        try:
            group.mkdir()
            limit = group / ("memory.max" if v2 else "memory.limit_in_bytes")
            limit.write_text(str(256 << 10))
            (group / "cgroup.procs").write_text(str(victim))
        except OSError:
            pytest.skip("no memory controller that can be written")
        begun = time.monotonic()
        # What it had counts elsewhere; whatever it touches from now on is soon too much.
        while victim in arena.pids and time.monotonic() - begun < 20:
            with suppress(OSError), arena.connect() as sock:
                sock.settimeout(1.0)
                wire.ask(sock, frames(0, 64 << 10))
        assert victim not in arena.pids, "the kernel did not kill it"
        died = time.monotonic()
        assert wire.eventually(arena.served)
        assert wire.eventually(lambda: len(arena.workers()) == 2)
        return f"back in {time.monotonic() - died:.1f} s"
    finally:
        wire.eventually(lambda: _removed(group), 5)


def _removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


@fault(
    39,
    "limits: total, per IP, each policy",
    **ITS_OWN,
    only=lambda backend: backend != "iterative",
    control={"overload": "queue", "max_connections_per_ip": None},
    fast=True,
)
def limits(arena: Arena) -> str:
    """A client beyond the limit waits, is rejected, or makes another leave; nobody is harmed."""
    control_overload = arena.setting("overload")
    for policy in ("queue", "reject", "shed-idle"):
        server = arena.start(max_connections=4, overload=control_overload or policy)
        inside = [arena.connect() for _ in range(4)]
        assert all(wire.ask(sock, b"in") == b"in" for sock in inside)
        late = arena.raw()
        late.settimeout(4)
        if policy == "queue":
            assert not select.select([late], [], [], 0.5)[0], "waits, and hears nothing"
            arena.close(inside[:1])
            assert wire.ask(wire.secured(late), b"at last") == b"at last"
        elif policy == "reject":
            assert late.recv(1) == b"", "turned away without a byte"
            assert all(wire.ask(sock, b"in") == b"in" for sock in inside)
        else:
            time.sleep(1.2)  # who is silent for a second may be asked to leave
            assert select.select(inside, [], [], 4)[0], "nobody made room"
        arena.close([*inside, late])
        assert server.stop() == 0
    per_ip = None if control_overload else 2
    server = arena.start(max_connections_per_ip=per_ip)
    mine = [arena.connect() for _ in range(2)]
    assert all(wire.ask(sock, b"in") == b"in" for sock in mine)
    third = arena.raw()
    third.settimeout(4)
    assert third.recv(1) == b""
    arena.close([*mine, third])
    assert server.stop() == 0
    return "as promised"
