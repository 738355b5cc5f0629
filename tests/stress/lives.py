"""Faults of processes: what kills, stops, ends or reloads them, and handlers that fail."""

import os
import pty
import select
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

import echoserver
from clients.tls import TlsSocket, Trust
from tests.stress.arena import FRAME, MIB, Arena, frames
from tests.stress.model import ITS_OWN, fault
from tests.stress.streams import control
from tests.support import certificates, inspection, pace, wire
from tests.support.launching import Child, command, free_port

RAISES = "tests/stress/controls.py:Raises"


@fault(
    16, "worker SIGKILL", workers=True, canary=False, control=control("NeverComesBack"), fast=True
)
def worker_killed(arena: Arena) -> str:
    """Clients of the other worker notice nothing, and new ones are soon served."""
    begun = time.monotonic()
    if arena.cell.backend == "iterative":
        os.kill(arena.workers()[0], signal.SIGKILL)
        begun = time.monotonic()
        assert wire.eventually(arena.served)
        return f"served again after {(time.monotonic() - begun) * 1000:.0f} ms"
    victim, *_ = arena.workers()
    socks: list[socket.socket] = []
    others: set[int] = set()
    while not others:  # to which worker clients come is the kernel's affair
        assert len(socks) < 200, "all clients came to one worker"
        begun_with = len(socks)
        socks += [
            arena.connect() for _ in range(20)
        ]  # at once: one by one, the same would take all
        for number in range(begun_with, len(socks)):
            assert wire.ask(socks[number], frames(number, 100)) == frames(number, 100)
        victims = inspection.peers_of(victim)
        others = {n for n, one in enumerate(socks) if one.getsockname()[1] not in victims}
    os.kill(victim, signal.SIGKILL)
    begun = time.monotonic()
    while not arena.served():
        assert pace.within(time.monotonic() - begun, wire.patience)
    took = time.monotonic() - begun
    assert took < 0.25 * arena.slack, f"accepting again after {took * 1000:.0f} ms"
    for number in others:
        assert wire.ask(socks[number], frames(number, 100, 100)) == frames(number, 100, 100)
    assert wire.eventually(lambda: len(arena.workers()) == 2)
    return f"served again after {took * 1000:.0f} ms, {len(others)} others undisturbed"


@fault(
    17,
    "worker SIGSTOP (watchdog)",
    workers=True,
    canary=False,
    tls=False,
    timeout=200,
    control=control("NeverComesBack"),
)
def worker_stopped(arena: Arena) -> str:
    """A worker that does nothing any more is replaced."""
    victim = arena.workers()[0]
    os.kill(victim, signal.SIGSTOP)
    begun = time.monotonic()
    assert wire.eventually(lambda: arena.log("worker_hangs"), 60), "nobody noticed"
    took = time.monotonic() - begun
    assert wire.eventually(lambda: len(arena.workers()) == 2)
    assert wire.eventually(arena.served)
    return f"replaced after {took:.0f} s"


@fault(
    18,
    "handler raises",
    settings={"handler": RAISES},
    counts={"handler_errors": None},
    control=control("DiesOfHandler"),
    fast=True,
)
def handler_raises(arena: Arena) -> str:
    """It is that connection's end, and nobody else's."""
    count = arena.size(200, 10)
    for _ in range(count):
        with arena.connect() as sock:
            assert wire.ask(sock, b"fine") == b"fine"
            sock.sendall(b"raise")
            assert wire.read_to_end(sock) == b"", "the end, and no reset"
    assert arena.served()
    return f"{count} failures"


@fault(
    19,
    "SIGTERM under load",
    **ITS_OWN,
    control=control("ClosesHard"),
    fast=True,
    timeout=1500,
)
def restarts(arena: Arena) -> str:
    """Clients ask as fast as they can; each gets an exact prefix of what it is owed, and an end."""
    rounds, clients = arena.size(100, 2), arena.crowd(arena.size(400, 40))
    answered = asked_late = came_late = 0
    if arena.cell.tls:
        clients = min(clients, 40)
    for _ in range(rounds):
        server = arena.start()
        crowd = Crowd(arena, clients)
        crowd.run_until_served()
        crowd.run_for(0.15)
        server.process.send_signal(signal.SIGTERM)
        crowd.run_to_the_end()
        assert server.wait() == 0
        stopped = server.stopped
        assert stopped is not None
        assert stopped["bytes_in"] == stopped["bytes_out"], "what was read was answered"
        assert stopped["cut"] == 0
        assert stopped["connections"] == crowd.size - crowd.came_late, "who was accepted was served"
        answered += crowd.answered
        asked_late += crowd.asked_late
        came_late += crowd.came_late
        arena.servers.clear()
    return (
        f"{rounds} restarts, {answered:,} answered, 0 lost, 0 reset; "
        f"{asked_late} asked and {came_late} came too late"
    )


_NEWCOMERS = 50
_GLANCE = 0.02  # seconds


class Crowd:
    """Clients in one loop, each of which asks as soon as it is answered; others still arrive."""

    def __init__(self, arena: Arena, count: int) -> None:
        self.answered = 0
        self.asked_late = 0
        """Clients whose last message met a server that had finished with them."""
        self.came_late = 0
        """Clients that connected, and were never accepted."""
        self._arena = arena
        self._most = count + _NEWCOMERS
        self._talks: dict[int, _Talk] = {}
        self._poll = select.epoll()
        trust = Trust(certificates.SERVERS.cert) if arena.cell.tls else None
        for number in range(count):
            raw = arena.raw()
            stream: socket.socket | TlsSocket = raw
            if trust is not None:
                stream = TlsSocket(raw, trust.context(), "127.0.0.1")
                stream.handshake()
            self._begin(_Talk(number, stream), raw)
        self.size = count
        self._arriving = False

    def run_until_served(self) -> None:
        """Let them talk until each has been answered."""
        over = time.monotonic() + wire.patience
        while not all(talk.answered for talk in self._talks.values()):
            assert time.monotonic() < over, "not all were answered"
            self._run(time.monotonic() + _GLANCE)

    def run_for(self, seconds: float) -> None:
        """Let them talk, while others come."""
        # Over TLS, they would hold up the rest: a handshake takes turns.
        self._arriving = not self._arena.cell.tls
        self._run(time.monotonic() + seconds)

    def run_to_the_end(self) -> None:
        """Let them talk until all have come to their end."""
        self._run(time.monotonic() + wire.patience)
        assert not self._talks, f"{len(self._talks)} never saw the end"
        self._poll.close()

    def _begin(self, talk: "_Talk", raw: socket.socket) -> None:
        raw.setblocking(False)
        self._talks[raw.fileno()] = talk
        self._poll.register(raw, select.EPOLLIN)
        talk.ask()

    def _arrive(self) -> None:
        """Let one more come, as long as somebody listens."""
        try:
            raw = self._arena.raw()
        except ConnectionRefusedError:
            self._arriving = False
            return
        except ConnectionResetError:  # it was in the queue when the server closed that
            self._arriving = False
            self.size += 1
            self.came_late += 1
            return
        self._begin(_Talk(self.size, raw), raw)
        self.size += 1
        self._arriving = self.size < self._most

    def _run(self, until: float) -> None:
        while self._talks and (left := until - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(min(left, 0.05)):
                talk = self._talks[fd]
                try:
                    if talk.hear():
                        self.answered += talk.complete
                        continue
                except ConnectionResetError:
                    assert not talk.answered, f"client {talk.number} was reset after an answer"
                    self.came_late += 1
                else:
                    self.asked_late += talk.owed > 0
                self._poll.unregister(fd)
                self._talks.pop(fd).close()
            if self._arriving:
                self._arrive()


class _Talk:
    """One of them."""

    size = 64

    def __init__(self, number: int, stream: "socket.socket | TlsSocket") -> None:
        self.number, self._stream = number, stream
        self._sent = self._received = 0
        self.complete = self._reset = False

    @property
    def answered(self) -> bool:
        """It has had an answer, so it had been accepted."""
        return self._received > 0

    @property
    def owed(self) -> int:
        """Bytes that it has asked for in vain so far."""
        return self._sent - self._received

    def close(self) -> None:
        """Leave, as one does who has seen the end."""
        self._stream.close()

    def ask(self) -> None:
        """Send the next message."""
        data = frames(self.number, self.size, self._sent)
        try:
            self._stream.send(data)
        except BrokenPipeError:  # it has ended: reading tells how
            pass
        except ConnectionResetError:  # which is told once, and here it was
            self._reset = True
        self._sent += self.size

    def hear(self) -> bool:
        """Read what has come, and ask again; False: it was the end."""
        self.complete = False
        try:
            data = self._stream.recv(4096)
        except BlockingIOError:
            return True
        if not data:
            if self._reset:
                raise ConnectionResetError
            assert not self.owed % self.size, "a part of a message is no answer"
            return False
        expected = frames(self.number, len(data), self._received)
        assert data == expected, wire.difference(data, expected)
        self._received += len(data)
        if not self.owed:
            self.complete = True
            self.ask()
        return True


@fault(
    20,
    "SIGTERM with a stalled peer",
    **ITS_OWN,
    control=control("WaitsForEver"),
    fast=True,
)
def stalled_peer(arena: Arena) -> str:
    """It is cut when the drain's time is over, and the exit code says so."""
    server = arena.start(drain_timeout=1.0)
    sock = arena.connect(receive_buffer=16 << 10)
    wire.push_until_blocked(sock, frames(0, 16 * MIB))
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait(8) == 4
    return f"exit 4 after {time.monotonic() - begun:.1f} s"


@fault(
    21,
    "double SIGTERM",
    **ITS_OWN,
    control=control("IgnoresTheSecond"),
    fast=True,
)
def twice(arena: Arena) -> str:
    """The second one ends it at once."""
    server = arena.start(drain_timeout=30.0)
    sock = arena.connect(receive_buffer=16 << 10)
    wire.push_until_blocked(sock, frames(0, 16 * MIB))
    begun = time.monotonic()
    # Two that come at once may be one; so another follows until it is gone.
    while server.process.poll() is None and time.monotonic() - begun < 8:
        server.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(0.1)
    seconds = time.monotonic() - begun
    assert server.wait(1) == 128 + signal.SIGTERM
    assert not inspection.events(server, "ended_by_force"), "the main flow did not notice it"
    return f"gone after {seconds * 1000:.0f} ms"


@fault(
    22,
    "Ctrl-C on a terminal",
    **ITS_OWN,
    tls=False,
    control=control("IgnoresTheFirst"),
    fast=True,
)
def ctrl_c(arena: Arena) -> str:
    """The whole group gets it, and drains; a client in the middle of its talk gets all."""
    port, backend = free_port(), arena.setting("backend")
    words = [command("echoserver"), "--backend", backend, "--port", str(port)]
    if arena.cell.workers:
        words += ["--workers", str(arena.cell.workers)]
    ours, theirs = pty.openpty()
    with Child(
        words,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_control_the_terminal,
    ) as process:
        os.close(theirs)
        drain = threading.Thread(target=_read_all, args=(ours,), daemon=True)
        drain.start()
        try:
            assert wire.eventually(lambda: _connects(port))
            with wire.connect(("127.0.0.1", port)) as sock:
                assert wire.ask(sock, frames(0, FRAME)) == frames(0, FRAME)
                os.write(ours, b"\x03")
                assert wire.read_to_end(sock) == b""
            assert process.wait(8) == 0
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            drain.join(5)
            os.close(ours)
    assert wire.eventually(lambda: not inspection.session(process.pid))
    return "exit 0"


def _control_the_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_all(fd: int) -> None:
    with suppress(OSError):
        while os.read(fd, 65536):
            pass


def _connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@fault(
    23,
    "SIGHUP reload at 1,000 connects/s",
    canary=False,
    control=control("StopsListeningOnHangup"),
    fast=True,
)
def reload_under_load(arena: Arena) -> str:
    """Nobody is refused or reset, and nothing is lost, while the server reads everything again."""
    seconds = arena.size(4, 1)
    until, count, begun = time.monotonic() + seconds, 0, time.monotonic()
    next_reload, reloads = begun + 0.1, 0
    while time.monotonic() < until:
        with arena.connect() as sock:
            assert wire.ask(sock, b"here?") == b"here?"
            assert wire.finish(sock) == b""
        wire.opened.pop()
        count += 1
        if time.monotonic() > next_reload:
            os.kill(arena.server.pid, signal.SIGHUP)
            reloads += 1
            next_reload += 0.5
        due = begun + count / 1000
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
    assert wire.eventually(lambda: arena.log("reloaded"))
    return f"{count / (time.monotonic() - begun):,.0f}/s, {reloads} reloads, 0 refused"


@fault(
    24,
    "reload with a broken configuration",
    **ITS_OWN,
    tls=False,
    control=control("DiesOfReload"),
    fast=True,
)
def broken_reload(arena: Arena) -> str:
    """The old one stays."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "server.toml"
        file.write_text("idle_timeout = 100\n")
        server = arena.start(arguments=["--config", str(file)])
        sock = arena.connect() if arena.cell.backend != "iterative" else None
        for broken in ("idle_timeout = 'soon'\n", "?", "no_such_setting = 1\n"):
            before = len(inspection.events(server, "reload_failed"))
            file.write_text(broken)
            os.kill(server.pid, signal.SIGHUP)
            assert wire.eventually(partial(_failed_again, server, before))
            assert arena.served()
        if sock is not None:
            assert wire.ask(sock, b"still") == b"still"
            sock.close()
        assert server.stop() == 0
    return "old one stays"


def _failed_again(server: echoserver.SpawnedServer, before: int) -> bool:
    return len(inspection.events(server, "reload_failed")) > before


@fault(
    25,
    "master SIGKILL",
    **ITS_OWN,
    only=lambda _backend: True,
    control=control("LeavesOrphans"),
    fast=True,
)
def master_killed(arena: Arena) -> str:
    """Nothing of the server is left."""
    server = arena.start()
    socks = [arena.connect() for _ in range(arena.crowd(5))]
    assert all(wire.ask(sock, b"here") == b"here" for sock in socks)
    family = inspection.tree(server.pid)
    begun = time.monotonic()
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    gone, alive = psutil.wait_procs(family, timeout=5)
    left = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for one in left:
        one.kill()
    assert not left, f"{len(left)} of {len(gone) + len(alive)} processes are left"
    return f"all gone after {(time.monotonic() - begun) * 1000:.0f} ms"


@fault(
    26,
    "crash loop at boot",
    **ITS_OWN,
    tls=False,
    control={"handler": "echo"},
    fast=True,
)
def crash_loop(arena: Arena) -> str:
    """A backend that fails as soon as it serves: the server gives up, and says why."""
    begun = time.monotonic()
    crashing = "tests/stress/controls.py:Crashes"
    sound = arena.setting("handler") is not None  # the control: nothing crashes
    arguments = [] if sound else ["--backend", crashing]
    try:
        arena.start(arguments=arguments)
    except echoserver.BootError as error:
        told = str(error)
    else:
        raise AssertionError("it serves")
    assert "failed" in told or "before they serve" in told
    return f"exit 3 after {time.monotonic() - begun:.1f} s"
