"""Where a case takes place: a server, a canary, clients, and what must hold for all of them."""

import os
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psutil
import pytest

import echoserver
from clients.tls import Trust
from tests.stress.model import Cell
from tests.support import certificates, inspection, wire

KIB, MIB = 1 << 10, 1 << 20
FRAME = 4096
_HEAD = struct.Struct("!IIQ")
_BODY = os.urandom(FRAME - _HEAD.size)
_PAUSE = 0.02  # seconds between two questions of the canary


def frames(connection: int, size: int, offset: int = 0) -> bytes:
    """Return a part of what a connection sends: frames with a number, a sequence and a CRC.

    Args:
        connection: Whose.
        size: How many bytes.
        offset: From where on.
    """
    first, last = offset // FRAME, (offset + size + FRAME - 1) // FRAME
    pieces = []
    for sequence in range(first, last):
        crc = zlib.crc32(_BODY, connection * 1_000_003 + sequence)
        pieces.append(_HEAD.pack(connection, sequence, crc) + _BODY)
    start = offset - first * FRAME
    return b"".join(pieces)[start : start + size]


def assert_prefix(received: bytes, connection: int, offset: int = 0) -> None:
    """What came back is what was sent, from `offset` on."""
    assert not wire.difference(received, frames(connection, len(received), offset))


class Canary:
    """A client that connected first, and asks all along."""

    def __init__(self, address: wire.Address, bound: float) -> None:
        self._sock = wire.connect(address)
        self._bound = bound
        self.worst = 0.0
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self.paused = threading.Event()
        self._ask()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        begun = time.monotonic()
        assert wire.ask(self._sock, b"canary") == b"canary"
        self.worst = max(self.worst, time.monotonic() - begun)

    def _run(self) -> None:
        try:
            while not self._over.wait(_PAUSE):
                if not self.paused.is_set():
                    self._ask()
        except BaseException as error:  # noqa: BLE001 - told by `stop`
            self._failure = error

    def stop(self) -> None:
        """It was served, and in time."""
        self._over.set()
        self._thread.join(wire.patience + 1)
        assert self._failure is None, f"the canary: {self._failure!r}"
        assert self.worst < self._bound, f"the canary waited for {self.worst:.2f} s"
        assert wire.finish(self._sock) == b""
        self._sock.close()


class Arena:
    """One case, from its server's start to its end.

    Args:
        cell: Which.
        full: At full size.
        bound: Seconds within which the canary must be served.
        override: Settings in the place of the case's, for a control.
    """

    def __init__(
        self, cell: Cell, *, full: bool, bound: float = 1.0, override: dict[str, Any] | None = None
    ) -> None:
        self.cell, self.fault, self.full = cell, cell.fault, full
        self._bound = bound
        self.slack = bound
        """How many times longer than promised something may take, where other tests run beside."""
        self._settings: dict[str, Any] = {
            "backend": cell.backend,
            "workers": cell.workers,
            "tls_cert": certificates.SERVERS.issue() if cell.tls else None,
            **cell.fault.settings,
            **(override or {}),
        }
        self.servers: list[echoserver.SpawnedServer] = []
        self.canary: Canary | None = None

    # -- its life ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        # Clients and servers of a thousand connections.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if self.fault.starts:
            self.start()
            self._begin()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            wire.trust = None
            while wire.opened:
                wire.opened.pop().close()
            for server in self.servers:
                if server.process.returncode is None:
                    server.kill()

    def _begin(self) -> None:
        with wire.connect(self.address) as sock:  # whatever is imported at first is imported now
            assert wire.ask(sock, b"warm") == b"warm"
            assert wire.finish(sock) == b""
        if self.fault.settles:
            self._before = inspection.settled(self.server.pid)
            self._memory = self.rss()
        if self.fault.canary and (self.cell.room is None or self.cell.room >= 8):
            self.canary = Canary(self.address, self._bound)
            self._at_rest = inspection.settled(self.server.pid)

    def _finish(self) -> None:
        if self.canary is not None:
            self.canary.stop()
        while wire.opened:
            wire.opened.pop().close()
        for server in self.servers:
            ended = server.process.returncode is not None
            if not ended and server is self.server and self.fault.settles:
                self._assert_settled()
            if not ended:
                assert server.stop() in {0, None}
            assert "Traceback" not in server.stderr, server.stderr
        if self.fault.counts and self.servers:
            stopped = self.server.stopped
            assert stopped is not None
            for name, count in self.fault.counts.items():
                found = stopped[name]
                assert (found > 0) if count is None else (found == count), (name, found)

    def _assert_settled(self) -> None:
        # A FIN that a full queue dropped is sent again after 0.2 s, 0.4 s, ..., 25.6 s: 51 in all.
        assert self._returns_to(self._before, 60), (
            f"{inspection.state(self.server.pid)} instead of {self._before}"
        )
        grown = self.rss() - self._memory
        assert grown < self.fault.keeps * MIB, f"{grown >> 20} MiB more than before"

    def _returns_to(self, held: inspection.State, seconds: float) -> bool:
        """Tell whether the server comes to hold that, and for a while.

        Of `process`, children come and go.
        """
        pid = self.server.pid
        return wire.eventually(
            lambda: inspection.state(pid) == held and inspection.settled(pid) == held, seconds
        )

    # -- servers -------------------------------------------------------------------------------

    def start(self, **settings: Any) -> echoserver.SpawnedServer:
        """Start a server as the case wants it."""
        merged = {**self._settings, **settings}
        server = echoserver.spawn(**{k: v for k, v in merged.items() if v is not None})
        self.servers.append(server)
        wire.trust = Trust(certificates.SERVERS.cert) if merged["tls_cert"] else None
        return server

    @property
    def server(self) -> echoserver.SpawnedServer:
        """The one that was started last."""
        return self.servers[-1]

    @property
    def address(self) -> wire.Address:
        """Where it listens."""
        return self.server.address

    @property
    def pids(self) -> list[int]:
        """Of its processes that live."""
        found = []
        for process in inspection.tree(self.server.pid):
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def workers(self) -> list[int]:
        """Of its workers that serve."""
        alive = set(self.pids)
        started = inspection.events(self.server, "worker_serves")
        return [pid for event in started if (pid := event["worker_pid"]) in alive]

    def tell(self, number: int) -> None:
        """Send a signal to all of them."""
        inspection.tell_all(self.server.pid, number)

    def setting(self, name: str) -> Any:
        """Return a setting of this case's servers."""
        return self._settings.get(name)

    # -- clients -------------------------------------------------------------------------------

    def size(self, full: int, reduced: int) -> int:
        """Return how much of it there is."""
        return full if self.full else reduced

    def crowd(self, count: int) -> int:
        """Return so many clients, or as many as there is room for besides the canary."""
        room = self.cell.room
        return count if room is None else max(1, min(count, room - (self.canary is not None)))

    def connect(self, **options: Any) -> socket.socket:
        """Return a connection, which the case's end closes."""
        return wire.connect(self.address, **options)

    def raw(self, address: wire.Address | None = None, source: str = "") -> socket.socket:
        """Return a connection that never speaks TLS, by default to the server."""
        bound = (source, 0) if source else None
        sock = socket.create_connection(address or self.address, wire.patience, bound)
        wire.opened.append(sock)
        return sock

    def served(self) -> bool:
        """Tell whether a new client is served, and without a reset."""
        with suppress(OSError), self.connect() as sock:
            return wire.ask(sock, b"served?") == b"served?" and wire.finish(sock) == b""
        return False

    def close(self, socks: Sequence[socket.socket]) -> None:
        """Close connections."""
        for sock in socks:
            sock.close()

    def cpu(self, seconds: float) -> float:
        """Return which part of a CPU the server uses in the next seconds."""
        before = inspection.cpu_seconds(self.server.pid)
        time.sleep(seconds)
        return (inspection.cpu_seconds(self.server.pid) - before) / seconds

    def rss(self) -> int:
        """Return the memory of all its processes, in bytes."""
        return inspection.rss_bytes(self.server.pid)

    def rss_at_rest(self) -> int:
        """Return the same, when all who came to a case have gone, and only the canary is there."""
        assert wire.eventually(self.served)
        assert self._returns_to(self._at_rest, wire.patience)
        return self.rss()

    def log(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of an event."""
        return inspection.events(self.server, event)


def skip_unless_root() -> None:
    """Skip what an ordinary user cannot bring about."""
    if os.geteuid() != 0:
        pytest.skip("only root can bring it about")
