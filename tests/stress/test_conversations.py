"""Any sequence of what clients can do, against what a queue of bytes would make of it."""

import socket
import time
from contextlib import suppress
from typing import ClassVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import echoserver
from clients.tls import Trust
from tests.stress.arena import frames
from tests.support import wire
from tests.support.certificates import SERVERS

_CLIENTS = 6


class Corked(socket.socket):
    """A socket that can keep what is sent, so that several TLS records leave in one segment."""

    def __init__(self, plain: socket.socket) -> None:
        timeout = plain.gettimeout()
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self.settimeout(timeout)
        wire.opened.append(self)
        self.corked = False
        self._kept = bytearray()

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override] # as TLS calls it
        if self.corked:
            self._kept += data
            return len(data)
        return super().send(data, flags)

    def uncork(self) -> None:
        """Send all that was kept."""
        if self.corked:
            self.corked = False
            kept, self._kept = bytes(self._kept), bytearray()
            self.setblocking(True)
            super().sendall(kept)


class Client:
    """A connection, and the queue that it should be."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number, self.sock = number, sock
        self.corked: Corked | None = None
        self.sent = self.received = 0
        self.half_closed = self.over = False

    @property
    def owed(self) -> int:
        return self.sent - self.received

    def secure(self) -> None:
        """Speak TLS from now on."""
        self.corked = Corked(self.sock)
        self.sock = cast("socket.socket", wire.Secured(self.corked, Trust(SERVERS.cert)))

    def uncork(self) -> None:
        """Let nothing stay behind."""
        if self.corked is not None:
            self.corked.uncork()

    def end(self) -> None:
        """End our direction: over TLS without a FIN, which would have the server read again."""
        if isinstance(self.sock, wire.Secured):
            self.sock.close_notify()
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def take(self, data: bytes) -> None:
        """What has come is what stood first in the queue."""
        assert data == frames(self.number, len(data), self.received)
        assert len(data) <= self.owed, "more than was sent"
        self.received += len(data)


class Conversations(RuleBasedStateMachine):
    """Clients of one server, which outlives them unless it is told to end."""

    backend: ClassVar[str] = ""
    tls: ClassVar[bool] = False
    server: ClassVar[echoserver.SpawnedServer | None] = None
    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        cls = type(self)
        if cls.server is None:
            secured = {"tls_cert": SERVERS.issue()} if self.tls else {}
            cls.server = echoserver.spawn(backend=self.backend, **secured)
        self.mine: list[Client] = []
        self.count = 0
        self.terminated = False

    @property
    def _server(self) -> echoserver.SpawnedServer:
        assert self.server is not None
        return self.server

    @precondition(lambda self: not self.terminated and len(self.mine) < _CLIENTS)
    @rule(target=clients)
    def connect(self) -> Client:
        self.count += 1
        client = Client(self.count, wire.connect(self._server.address))
        if self.tls:
            client.secure()
        self.mine.append(client)
        return client

    @rule(client=clients, size=st.sampled_from([1, 7, 1000, 4096, 70_000, 300_000]))
    def send(self, client: Client, size: int) -> None:
        if client.half_closed or client.over or client.owed > 1 << 20:
            return
        try:
            client.sock.sendall(frames(client.number, size, client.sent))
        except OSError:
            assert self.terminated, "it took no more, and nobody had told it to end"
            client.half_closed = True
        client.sent += size

    @precondition(lambda self: self.tls)
    @rule(client=clients)
    def cork(self, client: Client) -> None:
        if client.corked is not None and client.sent and not (client.half_closed or client.over):
            client.corked.corked = True  # from here to the next read, or to `uncork`, one segment

    @precondition(lambda self: self.tls)
    @rule(client=clients)
    def uncork(self, client: Client) -> None:
        with suppress(OSError):  # it has ended
            client.uncork()

    @rule(client=clients, size=st.sampled_from([1, 100, 5000, 100_000]))
    def read(self, client: Client, size: int) -> None:
        if client.over or not client.owed or self.terminated:
            return
        client.uncork()
        client.take(wire.read_exactly(client.sock, min(size, client.owed)))

    @rule(client=clients)
    def half_close(self, client: Client) -> None:
        if client.half_closed or client.over:
            return
        client.half_closed = True
        with suppress(OSError):  # it has ended
            client.end()

    @rule(client=consumes(clients))
    def reset(self, client: Client) -> None:
        wire.reset(client.sock)
        client.over = True
        self.mine.remove(client)

    @rule(client=consumes(clients))
    def finish(self, client: Client) -> None:
        self.half_close(client)
        self._read_to_the_end(client)
        self.mine.remove(client)

    @rule(milliseconds=st.integers(1, 30))
    def pause(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)

    @precondition(lambda self: not self.terminated and self.mine)
    @rule(seldom=st.integers(0, 4))
    def terminate(self, seldom: int) -> None:
        if not seldom:
            self.terminated = True
            self._server.process.terminate()

    @invariant()
    def nobody_has_more_than_is_due(self) -> None:
        assert all(client.received <= client.sent for client in self.mine)

    def _read_to_the_end(self, client: Client) -> None:
        if client.over:
            return
        try:
            with suppress(BrokenPipeError):
                client.uncork()
            client.take(wire.read_to_end(client.sock))
        except ConnectionResetError:
            assert self.terminated, "a reset, and nobody had told it to end"
        else:
            assert self.terminated or not client.owed, f"{client.owed} bytes are missing"
        client.over = True
        client.sock.close()

    def teardown(self) -> None:
        for client in self.mine:
            self.half_close(client)
            self._read_to_the_end(client)
        if self.terminated:
            server = self._server
            type(self).server = None
            assert server.wait() == 0
            assert server.stopped is not None
            assert server.stopped["cut"] == 0
            assert "Traceback" not in server.stderr


@pytest.mark.ci
@pytest.mark.stress
@pytest.mark.timeout(240, func_only=True)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_any_conversation(exemplar: str, *, secure: bool) -> None:
    if exemplar == "iterative":
        pytest.skip("clients of one server, of which it serves one at a time")

    class Machine(Conversations):
        backend: ClassVar[str] = exemplar
        tls: ClassVar[bool] = secure
        server: ClassVar[echoserver.SpawnedServer | None] = None

    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=15,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        if Machine.server is not None:
            Machine.server.kill()
