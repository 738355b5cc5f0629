"""systemd and its like: readiness, watchdogs, sockets that are handed over; process 1."""

import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

import echoserver
from echoserver.admission.binding import bind
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.runtime.sidecars import Sidecars
from tests.support import inspection, wire
from tests.support.launching import Child, await_listening, command, free_port


class Manager:
    """What listens where a service manager does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        wire.opened.append(self.sock)
        self.sock.bind(str(self.path))
        self.sock.settimeout(wire.patience)

    def forget(self) -> None:
        """Take no notice of what was said so far."""
        while select.select([self.sock], [], [], 0)[0]:
            self.sock.recv(4096)

    def hears(self, said: str) -> bool:
        """Tell whether something is said, after what else may be."""
        while True:
            try:
                words = self.sock.recv(4096).decode()
            except TimeoutError:
                return False
            if said in words.splitlines():
                return True


@contextmanager
def managed(
    *words: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], wire.Address]]:
    port = free_port()
    with Child(
        [command("echoserver"), "--port", str(port), *words],
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process, await_listening(port, process)
        finally:
            process.kill()


@pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_service_manager_hears_how_it_goes(words: tuple[str, ...], tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
    with managed(*words, **environment) as (process, address):
        assert manager.hears("READY=1")
        assert wire.served(address)
        assert manager.hears("WATCHDOG=1")
        assert manager.hears("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        assert manager.hears("RELOADING=1")
        assert manager.hears("READY=1")
        process.terminate()
        assert manager.hears("STOPPING=1")
        assert process.wait(20) == 0


def test_a_drain_that_begins_between_two_looks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master that sees the signal first tells the workers first."""
    manager = Manager(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    config = echoserver.Config(port=0)
    lifecycle, scoreboard = Lifecycle(8.0), Scoreboard.of(config)
    sockets, log = bind(config), Log(config)
    sidecars = Sidecars(config, sockets, log, None)
    sidecars.start(scoreboard, lifecycle)
    lifecycle.begin_drain()
    scoreboard.drain_everyone()
    lifecycle.dispatch_ready()
    try:
        assert manager.hears("STOPPING=1")
    finally:
        sidecars.close()
        lifecycle.close()
        sockets.close()
        log.close()


def test_the_watchdog_is_fed_when_clients_have_all_descriptors(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
    few = ("--backend", "selector", "--max-connections", "1000")
    with managed(*few, **environment) as (process, address):
        assert manager.hears("READY=1")
        limit = psutil.Process(process.pid).num_fds() + 20
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        for _ in range(40):
            wire.connect(address)
        assert wire.eventually(lambda: psutil.Process(process.pid).num_fds() >= limit)
        manager.forget()
        assert all(manager.hears("WATCHDOG=1") for _ in range(3))


@pytest.mark.parametrize("usec", ["", "x", "-1"])
def test_a_watchdog_that_is_none(usec: str, tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    with managed(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC=usec) as (_, address):
        assert manager.hears("READY=1")
        assert wire.served(address)


def test_a_manager_that_has_gone_is_not_missed(tmp_path: Path) -> None:
    with managed(NOTIFY_SOCKET=str(tmp_path / "nobody")) as (process, address):
        assert wire.served(address)
        process.terminate()
        assert process.wait(20) == 0


HAND_OVER = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", 0)) if sys.argv[1] == "tcp" else socket.socket(
    socket.AF_INET, socket.SOCK_DGRAM)
print(sock.getsockname()[1], flush=True)
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_socket_that_is_handed_over(words: tuple[str, ...]) -> None:
    given = [sys.executable, "-c", HAND_OVER, "tcp", "1", command("echoserver"), *words]
    with Child(given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        assert wire.served(address)  # it could connect before the server had begun
        with wire.connect(address) as sock:
            assert wire.ask(sock, b"hello") == b"hello"
            process.terminate()
            assert wire.read_to_end(sock) == b""
        assert process.wait(20) == 0


def test_what_has_no_effect_on_it_is_said() -> None:
    given = [sys.executable, "-c", HAND_OVER, "tcp", "1", command("echoserver"), "--port", "5555"]
    with Child(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert wire.served(("127.0.0.1", int(process.stdout.readline())))
        process.terminate()
        assert b"--port has no effect on a socket that was handed over" in process.stderr.read()


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [("udp", "1", "does not listen for TCP"), ("tcp", "2", "descriptor 4 that was handed over")],
)
def test_a_socket_that_is_of_no_use(kind: str, count: str, said: str) -> None:
    given = [sys.executable, "-c", HAND_OVER, kind, count, command("echoserver")]
    done = subprocess.run(given, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3
    assert said in done.stderr


@pytest.mark.parametrize(
    "words",
    [(), ("--workers", "2"), ("--overload", "reject")],
    ids=["alone", "workers", "reject"],
)
def test_who_waits_at_a_socket_that_stays_is_not_sent_away(words: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:

        def start() -> subprocess.Popen[bytes]:
            script = 'exec 3<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
            given = [command("echoserver"), "--max-connections", "1", *words]
            return subprocess.Popen(
                ["bash", "-c", script, str(ours.fileno()), *given],
                pass_fds=[ours.fileno()],
                stderr=subprocess.DEVNULL,
            )

        process = start()
        try:
            first = wire.connect(ours.getsockname())
            assert wire.ask(first, b"first") == b"first"
            # So that they come before it can turn them away, and it drains before it sees them.
            stopped = "reject" in words
            if stopped:
                process.send_signal(signal.SIGSTOP)
                assert inspection.stopped(process.pid)
            waiting = [wire.connect(ours.getsockname()) for _ in range(1 if stopped else 5)]
            for sock in waiting:
                sock.sendall(b"hello")
            process.terminate()
            process.send_signal(signal.SIGCONT)
            assert wire.read_to_end(first) == b""
            first.close()
            assert process.wait(20) == 0
            process = start()
            for sock in waiting:
                assert wire.read_exactly(sock, 5) == b"hello"
                sock.close()
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="no systemd-socket-activate"
)
def test_systemd_hands_its_socket_over() -> None:
    port = free_port()
    words = ["systemd-socket-activate", "--listen", f"127.0.0.1:{port}", command("echoserver")]
    with Child(words, stderr=subprocess.DEVNULL) as process:
        try:
            # It starts the server in its own place when the first client comes.
            assert wire.eventually(lambda: _served_at(port))
            assert wire.served(("127.0.0.1", port))
        finally:
            process.terminate()
        assert process.wait(20) == 0


def _served_at(port: int) -> bool:
    with suppress(ConnectionRefusedError):
        return wire.served(("127.0.0.1", port))
    return False


def _namespaces() -> bool:
    tried = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return all(map(shutil.which, ("unshare", "nsenter"))) and not (
        subprocess.run(tried, capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not _namespaces(), reason="cannot make a PID namespace")
@pytest.mark.parametrize("words", [(), ("--backend", "process"), ("--workers", "2")])
def test_process_1_collects_strays(words: tuple[str, ...]) -> None:
    """In a container, an orphan becomes a child of process 1."""
    port = free_port()
    given = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    given += [command("echoserver"), "--port", str(port), *words]
    with Child(given, stderr=subprocess.DEVNULL) as process:
        try:
            address = await_listening(port, process)
            first = psutil.Process(process.pid).children()[0]
            into = ["nsenter", "--target", str(first.pid), "--pid", "--mount"]
            orphan = "sleep 300 >/dev/null 2>&1 &"
            subprocess.run([*into, "sh", "-c", orphan], check=True, timeout=20)
            assert wire.eventually(lambda: _sleeping(first))
            (stray,) = _sleeping(first)
            stray.kill()
            assert wire.eventually(lambda: not psutil.pid_exists(stray.pid)), "a zombie remains"
            assert wire.served(address)
            first.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def _sleeping(parent: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == "sleep":
                found.append(child)
    return found
