"""The end of a server: nothing that was read stays unanswered, and nothing stays behind."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import echoserver
from echoserver.admission.binding import bind
from echoserver.system.sockets import undelivered_bytes
from tests.conformance.test_connection import cpu_share
from tests.conftest import StartServer
from tests.support import inspection, pace, wire
from tests.support.inspection import events
from tests.support.launching import free_port

CLIENTS = 40


@dataclass
class ClosedLoop:
    """A client that asks as soon as it is answered, until the server ends the stream."""

    number: int
    address: wire.Address
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    started: threading.Event = field(default_factory=threading.Event)
    ending: str = "did not end"

    def run(self) -> None:
        turn = 0
        with wire.connect(self.address) as sock:
            try:
                while True:
                    message = b"CLIENT %d, TURN %d\n" % (self.number, turn)
                    try:
                        sock.sendall(message)
                    except BrokenPipeError:
                        self.ending = "reset"
                        return
                    self.sent += message
                    reply = wire.read_exactly(sock, len(message))
                    self.received += reply
                    if len(reply) < len(message):
                        self.ending = "end of stream"
                        return
                    turn += 1
                    self.started.set()
            except ConnectionResetError:
                self.ending = "reset"


@pytest.mark.core
def test_sigterm_under_load(start: StartServer, room: Callable[[int], int]) -> None:
    server = start()
    clients = [ClosedLoop(number, server.address) for number in range(room(CLIENTS))]
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for client in clients:
        assert client.started.wait(wire.patience)
    begun = time.monotonic()
    assert server.stop() == 0
    assert pace.within(time.monotonic() - begun, 4), "the default deadline is 8 seconds"
    for thread in threads:
        thread.join(wire.patience)
    for client in clients:
        assert client.ending == "end of stream", f"client {client.number}: {client.ending}"
        assert client.sent.startswith(client.received), "a reply is an exact prefix"
    assert server.stopped is not None
    assert server.stopped["bytes_in"] == server.stopped["bytes_out"]
    assert server.stopped["bytes_out"] == sum(len(client.received) for client in clients)
    assert server.stopped["cut"] == server.stopped["resets"] == 0


@pytest.mark.plain
@pytest.mark.core
def test_sigterm_serves_who_was_queued(start: StartServer) -> None:
    """A request that was in the kernel's queue when the drain began is answered."""
    server = start()
    assert wire.served(server.address)
    inspection.tell_all(server.pid, signal.SIGSTOP)
    socks = [wire.connect(server.address) for _ in range(10)]
    for sock in socks:
        sock.sendall(b"QUEUED")
    os.kill(server.pid, signal.SIGTERM)
    inspection.tell_all(server.pid, signal.SIGCONT)
    for sock in socks:
        assert wire.read_to_end(sock) == b"QUEUED"
        sock.close()
    assert server.wait() == 0


def test_stream_that_never_pauses_is_ended(start: StartServer) -> None:
    """Its sender never reaches an end of its own; what comes back is a prefix all the same."""
    server = start()
    data = wire.capitals(1 << 20)
    sock = wire.connect(server.address)
    sock.settimeout(wire.patience)
    stop = threading.Event()

    def flood() -> None:
        try:
            while not stop.is_set():
                sock.sendall(data)
        except OSError:
            pass  # ended

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    received = 0
    assert sock.recv(1) == data[:1]
    received = 1
    server.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    try:
        while piece := sock.recv(65536):
            at = received % len(data)
            expected = (data + data)[at : at + len(piece)]
            assert not wire.difference(piece, expected)
            received += len(piece)
    except ConnectionResetError:
        pass  # it kept sending for longer than a server listens after its FIN
    stop.set()
    assert server.wait() == 0
    assert pace.within(time.monotonic() - begun, 6)
    sock.close()
    thread.join()


def test_idle_peer_is_no_cut(start: StartServer, room: Callable[[int], int]) -> None:
    server = start()
    socks = [wire.connect(server.address) for _ in range(room(5))]
    assert all(wire.ask(sock, b"X") == b"X" for sock in socks)
    begun = time.monotonic()
    assert server.stop() == 0  # although they keep their sockets open
    assert pace.within(time.monotonic() - begun, 3)
    assert all(wire.read_to_end(sock) == b"" for sock in socks)


def test_output_owed_at_the_deadline_is_exit_4(start: StartServer) -> None:
    server = start(drain_timeout=1)
    deaf = wire.connect(server.address, receive_buffer=65536)
    wire.push_until_blocked(deaf, wire.capitals(16 << 20))
    begun = time.monotonic()
    assert server.stop() == 4
    elapsed = time.monotonic() - begun
    assert elapsed > 0.8
    assert pace.within(elapsed, 5)
    assert server.stopped is not None
    assert server.stopped["cut"] == 1


def test_output_still_in_the_kernel_is_waited_for(start: StartServer) -> None:
    """All was taken by the kernel, nothing by the peer: leaving now could lose it."""
    server = start(drain_timeout=8)
    data = wire.capitals(400_000)
    with wire.connect(server.address, receive_buffer=4096) as sock:
        sock.sendall(data)
        assert wire.eventually(lambda: undelivered_bytes(sock) == 0)  # the server has it all
        server.process.send_signal(signal.SIGTERM)
        assert wire.eventually(lambda: _has_drawn_the_line(server.pid))
        assert not wire.difference(wire.read_to_end(sock), data)
    assert server.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_leaves_at_once(
    start: StartServer, second: signal.Signals, room: Callable[[int], int]
) -> None:
    server = start(drain_timeout=30)
    deaf = wire.connect(server.address, receive_buffer=65536)
    wire.push_until_blocked(deaf, wire.capitals(16 << 20))
    server.process.send_signal(signal.SIGTERM)
    if room(2) == 2:
        assert wire.eventually(lambda: events(server, "draining"))
    else:  # it is busy with its only client, and says so only after that
        assert wire.eventually(lambda: _has_drawn_the_line(server.pid))
    begun = time.monotonic()
    server.process.send_signal(second)
    assert server.wait() == 128 + second
    assert pace.within(time.monotonic() - begun, 2)
    assert server.stopped is not None
    assert wire.eventually(lambda: not inspection.session(server.pid))


def test_second_signal_among_late_arrivals(start: StartServer) -> None:
    server = start(drain_timeout=30)
    assert wire.served(server.address)
    inspection.tell_all(server.pid, signal.SIGSTOP)
    for _ in range(1000):  # silent, and all in the kernel's queue
        wire.connect(server.address)
    os.kill(server.pid, signal.SIGTERM)
    inspection.tell_all(server.pid, signal.SIGCONT)
    assert wire.eventually(lambda: _has_drawn_the_line(server.pid) or server.process.poll() == 0)
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() in {0, 128 + signal.SIGTERM}  # 0: it was through already
    assert pace.within(time.monotonic() - begun, 10)  # and not the 30 of the drain


def _has_drawn_the_line(pid: int) -> bool:
    """Tell whether a process has taken a SIGTERM: it is no longer pending (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return not int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1)


def test_many_silent_clients_are_no_reason_for_exit_4(start: StartServer) -> None:
    server = start(drain_timeout=40)  # which a crowded machine may need for so many forks
    assert wire.served(server.address)
    inspection.tell_all(server.pid, signal.SIGSTOP)
    for _ in range(800):
        wire.connect(server.address)
    os.kill(server.pid, signal.SIGTERM)
    inspection.tell_all(server.pid, signal.SIGCONT)
    assert server.wait() == 0
    assert server.stopped is not None
    assert server.stopped["cut"] == 0


def test_draining_costs_no_cpu(start: StartServer) -> None:
    server = start(drain_timeout=30)
    deaf = wire.connect(server.address, receive_buffer=65536)
    wire.push_until_blocked(deaf, wire.capitals(16 << 20))
    server.process.send_signal(signal.SIGTERM)
    assert wire.eventually(lambda: _has_drawn_the_line(server.pid))
    assert cpu_share(server.pid) < 0.05
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 128 + signal.SIGTERM


def test_ctrl_c_to_the_whole_group(start: StartServer, room: Callable[[int], int]) -> None:
    server = start()
    socks = [wire.connect(server.address) for _ in range(room(5))]
    assert all(wire.ask(sock, b"X") == b"X" for sock in socks)
    os.killpg(server.pid, signal.SIGINT)
    assert all(wire.read_to_end(sock) == b"" for sock in socks)
    for sock in socks:
        sock.close()
    assert server.wait() == 0
    assert "Traceback" not in server.stderr
    assert "KeyboardInterrupt" not in server.stderr


@pytest.mark.core
def test_parent_killed_leaves_no_orphan(start: StartServer, room: Callable[[int], int]) -> None:
    server = start()
    socks = [wire.connect(server.address) for _ in range(room(5))]
    assert all(wire.ask(sock, b"X") == b"X" for sock in socks)
    server.kill()
    assert wire.eventually(lambda: not inspection.session(server.pid))
    bind(echoserver.Config(host=(server.host,), port=server.port)).close()
    for sock in socks:
        sock.close()


def test_restart_on_the_same_port_at_once(start: StartServer, room: Callable[[int], int]) -> None:
    first = start(port=free_port())
    socks = [wire.connect(first.address) for _ in range(room(5))]
    assert all(wire.ask(sock, b"X") == b"X" for sock in socks)
    assert first.stop() == 0  # it closed first: its side is in TIME_WAIT
    second = start(port=first.port)
    assert wire.served(second.address)
    for sock in socks:
        sock.close()


def test_lifeline_ends_the_server(start: StartServer) -> None:
    """The process that spawned it is gone, however it went."""
    server = start()
    assert wire.served(server.address)
    os.close(server._lifeline)
    server._lifeline = -1
    assert server.wait() == 0
