"""Several processes on one listener: supervised, replaced, pinned; and what SIGHUP changes."""

import os
import select
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import echoserver
from echoserver.service.slots import SharedSlots, SlotTable
from echoserver.system.shared_lock import SharedLock
from loadtest.machine.sockets import accept_queue
from tests.echoserver.test_cli import sentence
from tests.support import inspection, pace, wire
from tests.support.inspection import events
from tests.support.launching import changed_server, command, free_port, run


def worker_pids(server: echoserver.SpawnedServer) -> list[int]:
    return inspection.servers(server.pid)


def servers_of(socks: list[Any], server: echoserver.SpawnedServer) -> dict[Any, int]:
    """Return the worker that serves each connection: it, or its child, has the other end of it."""
    serves = {port: pid for pid in worker_pids(server) for port in inspection.peers_of(pid)}
    return {sock: serves[sock.getsockname()[1]] for sock in socks}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("thread", marks=pytest.mark.ci),
        "selector",
        pytest.param("process", marks=pytest.mark.ci),
    ],
)
def test_a_killed_worker_is_back_within_250_ms(model: str) -> None:
    """In the quickest of a few attempts: a machine busy with other tests makes it only later."""
    with echoserver.spawn(backend=model, workers=4) as server:

        def serving(number: int) -> bool:
            return len(events(server, "worker_serves")) == number

        took = []
        for number, victim in enumerate(worker_pids(server), start=5):
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            assert wire.eventually(partial(serving, number))
            took.append(time.monotonic() - killed)
        assert min(took) < 0.25, took


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("thread", marks=pytest.mark.ci),
        "selector",
        pytest.param("process", marks=pytest.mark.ci),
    ],
)
def test_a_killed_worker_takes_only_its_own_connections_with_it(model: str) -> None:
    with echoserver.spawn(backend=model, workers=2, max_connections=8) as server:
        socks = [wire.connect(server.address) for _ in range(8)]
        assert all(wire.ask(sock, b"X") == b"X" for sock in socks)
        served_by = servers_of(socks, server)
        victim = served_by[socks[0]]
        os.kill(victim, signal.SIGKILL)
        assert wire.eventually(lambda: len(events(server, "worker_serves")) == 3)
        assert [event["exit_code"] for event in events(server, "worker_died")] == [-9]
        for sock, pid in served_by.items():
            if pid != victim:
                assert wire.ask(sock, b"STILL HERE") == b"STILL HERE"
            else:
                with pytest.raises(ConnectionResetError), sock:
                    assert sock.recv(1) == b""
                    raise ConnectionResetError  # an end is as good
        # Its slots are free again, and no more than its own.
        gone = sum(pid == victim for pid in served_by.values())
        fresh = [wire.connect(server.address) for _ in range(gone)]
        assert all(wire.ask(sock, b"X") == b"X" for sock in fresh)
        surplus = wire.connect(server.address)
        surplus.sendall(b"X")
        surplus.settimeout(0.3)
        with pytest.raises(TimeoutError):
            surplus.recv(1)
    assert server.stopped is not None
    # When the drain began, the last one was in the queue; whether a slot came free is chance.
    assert server.stopped["connections"] + server.stopped["unserved"] == 8 + gone + 1


def test_the_limit_counts_over_all_workers() -> None:
    with echoserver.spawn(workers=3, max_connections=2, overload="reject") as server:
        inside = [wire.connect(server.address) for _ in range(2)]
        assert all(wire.ask(sock, b"X") == b"X" for sock in inside)
        for _ in range(6):
            with wire.connect(server.address) as sock:
                assert wire.read_to_end(sock) == b""
        assert all(wire.ask(sock, b"X") == b"X" for sock in inside)
        assert wire.finish(inside[0]) == b""
        assert wire.eventually(lambda: wire.served(server.address))
    assert server.stopped is not None
    assert server.stopped["rejected"] >= 6


def test_as_many_as_are_allowed_are_never_turned_away() -> None:
    """A worker that only looks whether someone is there must not hold a slot meanwhile."""
    with echoserver.spawn(workers=4, max_connections=2, overload="reject") as server:
        for _ in range(150):
            socks = [wire.connect(server.address) for _ in range(2)]
            assert [wire.ask(sock, b"X") for sock in socks] == [b"X", b"X"]
            assert [wire.finish(sock) for sock in socks] == [b"", b""]
            for sock in socks:
                sock.close()
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["rejected"] == 0


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("thread", marks=pytest.mark.ci),
        "selector",
        pytest.param("process", marks=pytest.mark.ci),
    ],
)
def test_who_is_queued_is_not_lost_when_a_worker_stops(model: str) -> None:
    with echoserver.spawn(backend=model, workers=2, max_connections=2) as server:
        inside = [wire.connect(server.address) for _ in range(2)]
        assert all(wire.ask(sock, b"X") == b"X" for sock in inside)
        queued = wire.connect(server.address)
        queued.sendall(b"QUEUED")
        stopped = servers_of(inside, server)[inside[0]]
        os.kill(stopped, signal.SIGTERM)
        assert wire.read_exactly(queued, 6) == b"QUEUED"
        assert wire.read_to_end(inside[0]) == b""
        assert wire.eventually(lambda: events(server, "worker_died"))
        assert events(server, "worker_died")[0]["exit_code"] == 0
        assert wire.ask(queued, b"STILL HERE") == b"STILL HERE"
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["unserved"] == 0


def test_what_a_killed_process_held_is_free_again() -> None:
    """Wherever it was: whatever it had taken stands in its account, and nowhere else."""
    table = SlotTable(accounts=2, limit=3)
    mine = SharedSlots(10, table, account=0)
    assert mine.take()

    def exhausted() -> bool:
        return mine.exhausted

    ready, tell = os.pipe()
    if (pid := os.fork()) == 0:
        theirs = SharedSlots(10, table, account=1)
        table._lock.__enter__()  # killed while it looks
        os.write(tell, bytes([theirs.take(), theirs.take(), theirs.take()]))
        table._lock.__enter__()
        signal.pause()
    try:
        assert os.read(ready, 3) == bytes([True, True, False])
        assert exhausted()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not mine.take(), "until someone has noticed"
    table.wipe(1)
    assert not exhausted()
    assert [mine.take() for _ in range(3)] == [True, True, False]
    table.set_limit(2)
    mine.give()
    assert not mine.take(), "three of two are too many"
    mine.give()
    assert mine.take()
    for fd in (ready, tell):
        os.close(fd)
    table.close()


@pytest.mark.slow
def test_the_limit_holds_although_workers_are_killed_under_load() -> None:
    with echoserver.spawn(workers=2, max_connections=3) as server:
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                with suppress(OSError), socket.create_connection(server.address, 1) as sock:
                    sock.settimeout(1)
                    sock.sendall(b"X")
                    sock.recv(1)

        clients = [threading.Thread(target=come_and_go, daemon=True) for _ in range(6)]
        for client in clients:
            client.start()
        for number in range(12):
            with suppress(ProcessLookupError, IndexError):
                os.kill(worker_pids(server)[number % 2], signal.SIGKILL)
            assert wire.eventually(
                lambda: len(worker_pids(server)) == 2 and wire.served(server.address), 20
            )
        stop.set()
        for client in clients:
            client.join()
        assert wire.eventually(lambda: wire.served(server.address))
        socks = [wire.connect(server.address) for _ in range(6)]
        for sock in socks:
            sock.sendall(b"X")
        served = select.select(socks, [], [], 1)[0]
        assert wire.eventually(lambda: len(select.select(socks, [], [], 0)[0]) == 3), len(served)
        time.sleep(0.3)  # the test is that nobody else is served
        assert len(select.select(socks, [], [], 0)[0]) == 3


def test_two_locks_of_two_threads_are_no_deadlock() -> None:
    """What the kernel, which knows processes only, takes for one."""
    locks = SharedLock("one"), SharedLock("other")
    until = time.monotonic() + 1.0

    def contend() -> list[BaseException]:
        failed: list[BaseException] = []

        def take(lock: SharedLock) -> None:
            try:
                while time.monotonic() < until:
                    with lock:
                        pass
            except OSError as error:
                failed.append(error)

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failed

    if (pid := os.fork()) == 0:
        os._exit(len(contend()))
    assert contend() == []
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for lock in locks:
        lock.close()


def test_as_many_workers_as_there_are_cpus() -> None:
    with echoserver.spawn(workers="auto") as server:
        assert wire.served(server.address)
        assert len(worker_pids(server)) == len(os.sched_getaffinity(0))


def test_lines_carry_the_worker() -> None:
    with echoserver.spawn(workers=2, log_level="debug") as server:
        assert wire.served(server.address)
    assert {event["worker"] for event in events(server, "worker_started")} == {1, 2}
    (opened,) = events(server, "connection_opened")
    assert opened["worker"] in {1, 2}
    listening = events(server, "listening")
    assert len(listening) == 1
    assert listening[0]["workers"] == 2
    assert listening[0]["pid"] == server.pid
    assert len(events(server, "stopped")) == 1


@pytest.mark.parametrize("count", ["1", "2", "8"])
def test_workers_that_cannot_start_are_exit_3(count: str, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(
        "from echoserver import Backend\n"
        "class Dies(Backend):\n"
        "    def serve(self, listener, service):\n"
        "        raise SystemExit('no')\n"
    )
    begun = time.monotonic()
    result = run(
        "echoserver", "--port", "0", "--workers", count, "--backend", f"{tmp_path}/dies.py:Dies"
    )
    assert "worker_serves" not in result.stderr
    assert result.returncode == 3
    assert pace.within(time.monotonic() - begun, 10)
    assert "the workers end before they serve" in result.stderr.splitlines()[-1]
    assert "worker_failed" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_that_lives_does_not_serve_yet(tmp_path: Path) -> None:
    """It answers the master's questions from its first moment on."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "from echoserver.backends.thread import ThreadBackend\n"
        "class Slow(ThreadBackend):\n"
        "    def serve(self, listener, service):\n"
        f"        while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\n"
        "        super().serve(listener, service)\n"
    )
    port = free_port()
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [
                *(command("echoserver"), "--workers", "2", "--port", str(port)),
                *("--backend", f"{tmp_path}/slow.py:Slow", "--log-format", "json"),
            ],
            stderr=stderr,
        ) as process,
    ):
        assert wire.eventually(lambda: log.read_text().count("worker_started") == 2)
        master = psutil.Process(process.pid)
        victim, other = master.children()
        victim.kill()  # whereupon the other one is woken
        assert wire.eventually(lambda: log.read_text().count("worker_started") == 3)
        time.sleep(0.3)  # the test is that nothing is said meanwhile
        assert other.is_running()
        assert "worker_serves" not in log.read_text()
        assert "listening" not in log.read_text()
        (tmp_path / "go").touch()
        assert wire.eventually(lambda: '"listening"' in log.read_text())
        assert wire.served(("127.0.0.1", port))
        process.terminate()
        assert process.wait(10) == 0


def test_a_worker_that_dies_again_and_again_is_started_ever_later() -> None:
    with echoserver.spawn(workers=1) as server:
        assert wire.served(server.address)
        deaths = 0
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5:
            for pid in worker_pids(server):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    deaths += 1
            time.sleep(0.01)
        assert deaths < 20, "it restarts it without end"
        assert wire.eventually(lambda: wire.served(server.address))


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_hanging_worker_is_replaced() -> None:
    with echoserver.spawn(workers=2, backend="iterative") as server:
        idle = [wire.connect(server.address) for _ in range(2)]
        assert all(wire.ask(sock, b"X") == b"X" for sock in idle)
        time.sleep(25)  # the test is that nothing happens: waiting for an idle client is no hanging
        assert len(events(server, "worker_started")) == 2
        stopped = servers_of(idle, server)[idle[0]]
        os.kill(stopped, signal.SIGSTOP)
        assert wire.eventually(lambda: len(events(server, "worker_serves")) == 3, seconds=40)
        assert events(server, "worker_hangs")[0]["worker_pid"] == stopped
        assert wire.ask(idle[1], b"STILL HERE") == b"STILL HERE"
        assert wire.served(server.address)


@pytest.mark.slow
def test_workers_that_were_suspended_with_their_master_are_not_replaced() -> None:
    """As by ``docker pause``: they had no time to answer. The master may be the first to go on."""
    change = (
        "from echoserver.runtime import master as w; "
        "w._HEARTBEAT_INTERVAL, w.HEARTBEAT_TIMEOUT, w._SUSPENDED = 0.2, 2, 1.5"
    )
    with changed_server(change, "--workers", "2") as (process, address):
        master = psutil.Process(process.pid)
        assert wire.eventually(lambda: len(master.children()) == 2 and wire.served(address))
        workers = master.children()
        for one in workers:
            one.suspend()
        time.sleep(1.0)  # they are asked, and do not answer
        master.suspend()
        time.sleep(3.0)  # more than they may be silent
        master.resume()
        time.sleep(0.3)  # it is the first to look
        for one in workers:
            one.resume()
        assert all(wire.served(address) for _ in range(4))
        assert wire.eventually(lambda: master.children() == workers)
        process.terminate()
        assert "worker_hangs" not in process.communicate()[1]
        assert process.returncode == 0


def test_affinity() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    with echoserver.spawn(workers=2, affinity="auto") as server:
        for number, pid in enumerate(sorted(worker_pids(server))):
            assert os.sched_getaffinity(pid) == {allowed[number % len(allowed)]}
    with echoserver.spawn(affinity=str(allowed[-1])) as server:
        assert os.sched_getaffinity(server.pid) == {allowed[-1]}
    with echoserver.spawn() as server:
        assert os.sched_getaffinity(server.pid) == set(allowed)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "0"], "--workers must be auto, or a whole number from 1"),
        (["--workers", "many"], "--workers must be auto"),
        (["--affinity", "some"], "--affinity must be off, auto, or CPU numbers such as 0,2-3"),
        (["--affinity", "3-1"], "--affinity must be"),
        (["--affinity", "60000"], "--affinity: this process may not run on CPU 60000"),
    ],
)
def test_bad_input(words: list[str], says: str) -> None:
    result = run("echoserver", "--port", "0", *words)
    assert result.returncode == 2
    assert says in sentence(result)


def served(server: echoserver.SpawnedServer, workers: int) -> bool:
    """Tell whether so many workers have come to serve, those that have ended included."""
    return len(events(server, "worker_serves")) == workers


def shouts(server: echoserver.SpawnedServer) -> bool:
    """Tell whether a new client is served by the handler `upper`."""
    with wire.connect(server.address) as sock:
        return wire.ask(sock, b"shout") == b"SHOUT"


class Reconnecting:
    """A client that asks once a connection, again and again; each request must be answered."""

    def __init__(self, address: wire.Address) -> None:
        self.address = address
        self.answered = 0
        self.failures: list[str] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stop.is_set():
            message = b"REQUEST %d" % self.answered
            try:
                with wire.connect(self.address) as sock:
                    reply = wire.ask(sock, message)
                    rest = wire.finish(sock)
                if (reply, rest) != (message, b""):
                    self.failures.append(f"{reply!r} and {rest!r} for {message!r}")
            except OSError as error:
                self.failures.append(repr(error))
            self.answered += 1


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(f"port = {free_port()}\n")
    return path


@pytest.mark.parametrize("model", ["thread", "selector", "process"])
def test_sighup_replaces_the_workers_under_load(model: str, toml: Path) -> None:
    settings = toml.read_text()
    arguments = ["--config", str(toml)]
    with echoserver.spawn(backend=model, workers=2, port=None, arguments=arguments) as server:
        before = set(worker_pids(server))
        stays = wire.connect(server.address)
        assert wire.ask(stays, b"stays") == b"stays"
        clients = [Reconnecting(server.address) for _ in range(4)]
        for turn, handler in enumerate(["upper", "echo", "upper"], 1):
            toml.write_text(settings + f"handler = '{handler}'\nbacklog = {turn}\n")
            os.kill(server.pid, signal.SIGHUP)
            assert wire.eventually(partial(served, server, 2 + 2 * turn))
        assert wire.eventually(lambda: len(events(server, "worker_stopped")) == 6)
        assert before.isdisjoint(worker_pids(server))
        assert shouts(server)
        for client in clients:
            client.stop.set()
            client.thread.join()
        assert [client.failures for client in clients] == [[], [], [], []]
        assert sum(client.answered for client in clients) > 20
        assert wire.read_to_end(stays) == b"", "it was drained with its worker"
        assert "--backlog" in events(server, "reload_incomplete")[0]["restart_for"]
        # A mistake in the file changes nothing.
        toml.write_text("handler = 'ecco'\n")
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: events(server, "reload_failed"))
        assert "did you mean 'echo'" in events(server, "reload_failed")[0]["reason"]
        assert shouts(server)
    assert server.stopped is not None
    assert server.stopped["cut"] == 0


@pytest.mark.parametrize("model", ["thread", "selector", "process", "iterative"])
def test_sighup_without_workers_reloads_in_place(model: str, toml: Path) -> None:
    settings = toml.read_text()
    arguments = ["--config", str(toml)]
    with echoserver.spawn(backend=model, port=None, arguments=arguments) as server:
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"shout") == b"shout"
            toml.write_text(settings + "handler = 'upper'\nidle-timeout = 0.3\npool-size = 3\n")
            os.kill(server.pid, signal.SIGHUP)
            if model != "iterative":  # which has no time for it before this client has gone
                assert wire.eventually(lambda: events(server, "reloaded"))
                assert wire.ask(sock, b"shout") == b"shout", "it keeps the handler that it has"
        with wire.connect(server.address) as sock:
            assert wire.eventually(lambda: events(server, "reloaded"))
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"shout") == b"SHOUT"
            assert wire.read_to_end(sock) == b"", "0.3 seconds of silence end it"
        assert events(server, "reload_incomplete")[0]["restart_for"] == "--pool-size"


@pytest.mark.parametrize("model", ["thread", "selector", "process", "iterative"])
def test_sighup_while_it_drains_changes_nothing(model: str, toml: Path) -> None:
    arguments = ["--config", str(toml)]
    with echoserver.spawn(
        backend=model, port=None, drain_timeout=30, arguments=arguments
    ) as server:
        sock = wire.connect(server.address, receive_buffer=65536)
        data = wire.content(8 << 20)
        sent = wire.push_until_blocked(sock, data)
        os.kill(server.pid, signal.SIGTERM)
        if model != "iterative":  # which has a client to see off before it says so
            assert wire.eventually(lambda: events(server, "draining"))
        os.kill(server.pid, signal.SIGHUP)
        received = wire.read_to_end(sock)
        assert data.startswith(received)
        assert 0 < len(received) <= sent
        sock.close()
        assert server.wait() == 0
        assert not events(server, "reload_failed")


@pytest.mark.parametrize("model", ["thread", "process", "selector"])
def test_a_reload_brings_workers_shorter_timeouts(model: str, toml: Path) -> None:
    settings = toml.read_text()
    toml.write_text(settings + "idle-timeout = 60.0\n")
    arguments = ["--config", str(toml)]
    with echoserver.spawn(backend=model, workers=1, port=None, arguments=arguments) as server:
        toml.write_text(settings + "idle-timeout = 0.3\n")
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: events(server, "reloaded"))
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"hello") == b"hello"
            assert wire.read_to_end(sock) == b"", "0.3 seconds of silence end it"


def _reloaded(server: echoserver.SpawnedServer, times: int) -> bool:
    return len(events(server, "reloaded")) == times


@pytest.mark.parametrize("count", [None, 1])
def test_a_reload_that_lets_everybody_in_warns_once(count: int | None, toml: Path) -> None:
    rules = toml.read_text()
    toml.write_text(rules + "host = '0.0.0.0'\nallow = ['127.0.0.0/8']\n")
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=count, port=None, arguments=arguments) as server:
        toml.write_text(rules + "host = '0.0.0.0'\n")
        for again in (False, True):
            os.kill(server.pid, signal.SIGHUP)
            assert wire.eventually(partial(_reloaded, server, 1 + again))
        assert len(events(server, "open_to_all")) == 1


def test_a_pinned_server_can_be_reloaded(toml: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    cpus = ",".join(map(str, allowed))
    arguments = ["--config", str(toml), "--affinity", cpus]
    with echoserver.spawn(port=None, arguments=arguments) as server:
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: events(server, "reloaded"))
        assert os.sched_getaffinity(server.pid) == {allowed[0]}


@pytest.mark.parametrize("count", [None, 2])
def test_a_plugin_that_fails_in_a_reload_ends_nothing(
    count: int | None, toml: Path, tmp_path: Path
) -> None:
    (tmp_path / "leaves.py").write_text(
        "from echoserver.handlers.echo import EchoHandler\n"
        "class Leaves(EchoHandler):\n"
        "    def __init__(self, n: int = 1): raise SystemExit(7)\n"
    )
    port = toml.read_text()
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=count, port=None, arguments=arguments) as server:
        leaves = f"handler = '{tmp_path}/leaves.py:Leaves'\nhandler-option = {{n = '2'}}\n"
        toml.write_text(port + leaves)
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: events(server, "reload_failed"))
        assert "n=2" in events(server, "reload_failed")[0]["reason"]
        assert wire.served(server.address)
        assert server.stop() == 0


WAITS = """
import signal
from echoserver.backends.selector import SelectorBackend

class Waits(SelectorBackend):
    def serve(self, listener, service):
        while True:
            signal.pause()
"""


def reload_to_one_that_waits(server: echoserver.SpawnedServer, toml: Path, plugin: Path) -> int:
    """Let a server read a file by which no worker comes to serve; return the worker that tries."""
    plugin.write_text(WAITS)
    before = len(events(server, "worker_started"))
    toml.write_text(toml.read_text() + f"backend = '{plugin}:Waits'\n")
    os.kill(server.pid, signal.SIGHUP)
    assert wire.eventually(lambda: len(events(server, "worker_started")) == before + 1)
    return int(events(server, "worker_started")[-1]["worker_pid"])


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_reload_that_comes_to_nothing_does_not_stand_in_the_way_of_the_next(
    *, killed: bool, toml: Path, tmp_path: Path
) -> None:
    settings = toml.read_text()
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=2, port=None, arguments=arguments) as server:
        before = worker_pids(server)
        waits = reload_to_one_that_waits(server, toml, tmp_path / "waits.py")
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"still") == b"still"
        toml.write_text(settings + "handler = 'upper'\n")
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: set(before).isdisjoint(worker_pids(server)))
        assert shouts(server)
        if killed:  # later, for it could have been about to serve somebody
            assert wire.eventually(lambda: not psutil.pid_exists(waits), seconds=40)
        else:
            os.kill(waits, signal.SIGKILL)
        assert server.stop() == 0


def test_a_worker_that_dies_while_a_reload_comes_to_nothing_is_replaced(
    toml: Path, tmp_path: Path
) -> None:
    settings = toml.read_text()
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=1, port=None, arguments=arguments) as server:
        (before,) = worker_pids(server)
        waits = reload_to_one_that_waits(server, toml, tmp_path / "waits.py")
        os.kill(server.pid, signal.SIGSTOP)  # so that both are news at the same time
        os.kill(before, signal.SIGKILL)
        toml.write_text(settings + "handler = 'upper'\n")
        os.kill(server.pid, signal.SIGHUP)
        os.kill(server.pid, signal.SIGCONT)
        assert wire.eventually(lambda: events(server, "reloaded"))
        assert wire.eventually(lambda: shouts(server))
        os.kill(waits, signal.SIGKILL)
        assert server.stop() == 0


def reload(server: echoserver.SpawnedServer, toml: Path, text: str) -> None:
    """Let a server of one worker read its file again, and the worker be replaced."""
    before = len(events(server, "worker_stopped"))
    toml.write_text(text)
    os.kill(server.pid, signal.SIGHUP)
    assert wire.eventually(lambda: len(events(server, "worker_stopped")) > before)


def threads_of(server: echoserver.SpawnedServer) -> int:
    (pid,) = worker_pids(server)
    return psutil.Process(pid).num_threads()


def test_what_only_workers_can_change_changes(toml: Path) -> None:
    """Backend, pool and affinity, with the limits that follow from them."""
    port = toml.read_text()
    toml.write_text(port + "backend = 'iterative'\nmax-connections = 20\n")
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=1, port=None, arguments=arguments) as server:

        def served_at_once(clients: int) -> int:
            socks = [wire.connect(server.address) for _ in range(clients)]
            for sock in socks:
                sock.sendall(b"X")
            served = 0
            with suppress(TimeoutError):
                for sock in socks:
                    sock.settimeout(0.5)
                    served += sock.recv(1) == b"X"
            for sock in socks:
                sock.close()
            return served

        assert served_at_once(3) == 1
        reload(server, toml, port + "backend = 'thread'\nmax-connections = 20\n")
        assert served_at_once(8) == 8
        pool = port + "backend = 'pool'\nmax-connections = 20\npool-size = "
        reload(server, toml, pool + "4\n")
        assert threads_of(server) == 5
        assert served_at_once(8) == 4
        (cpu, *_) = os.sched_getaffinity(0)
        reload(server, toml, pool + f"2\naffinity = '{cpu}'\n")
        assert threads_of(server) == 3
        assert served_at_once(8) == 2
        assert os.sched_getaffinity(worker_pids(server)[0]) == {cpu}
        assert not events(server, "reload_incomplete")


def test_what_does_not_serve_does_not_replace_what_does(toml: Path, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(
        "from echoserver import Backend\n"
        "class Fails(Backend):\n"
        "    def serve(self, listener, service): raise RuntimeError('not today')\n"
    )
    port = toml.read_text()
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=2, port=None, arguments=arguments) as server:
        before = worker_pids(server)
        toml.write_text(port + f"backend = '{tmp_path}/fails.py:Fails'\n")
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: events(server, "reload_failed"))
        assert worker_pids(server) == before
        # Who takes the place of one that dies serves by what is known to serve.
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert wire.eventually(lambda: served(server, 4))
        assert wire.served(server.address)
        assert not events(server, "reloaded")


@pytest.mark.parametrize("cures", [True, False])
def test_a_reload_is_tried_where_nobody_serves_any_more(
    toml: Path, tmp_path: Path, *, cures: bool
) -> None:
    flag = tmp_path / "short"
    plugin = tmp_path / "fails.py"
    plugin.write_text(
        "import os\n"
        "from echoserver.backends.selector import SelectorBackend\n"
        "class Fails(SelectorBackend):\n"
        "    def serve(self, listener, service):\n"
        f"        if os.path.exists({str(flag)!r}): raise RuntimeError('not today')\n"
        "        super().serve(listener, service)\n"
    )
    port = toml.read_text()
    toml.write_text(port + f"backend = '{plugin}:Fails'\n")
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=2, backend=None, port=None, arguments=arguments) as server:
        flag.touch()
        for pid in worker_pids(server):
            os.kill(pid, signal.SIGKILL)
        assert wire.eventually(lambda: len(events(server, "worker_died")) > 4)
        backend = "thread" if cures else f"{plugin}:Fails"
        toml.write_text(port + f"backend = '{backend}'\nhandler = 'upper'\n")
        os.kill(server.pid, signal.SIGHUP)
        told = "reloaded" if cures else "reload_failed"
        assert wire.eventually(lambda: events(server, told))
        flag.unlink()

        def answer() -> bytes:
            with wire.connect(server.address) as sock:
                return wire.ask(sock, b"shout")

        if cures:  # what was just starting by the old design is replaced, one after the other
            assert wire.eventually(lambda: answer() == b"SHOUT")
        else:
            assert answer() == b"shout"
        assert len(events(server, "reloaded")) == cures


@pytest.mark.ci
def test_many_sighups_leave_as_many_workers(toml: Path) -> None:
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=2, port=None, arguments=arguments) as server:
        client = Reconnecting(server.address)
        for _ in range(30):
            os.kill(server.pid, signal.SIGHUP)
            for pid in worker_pids(server)[:1]:  # and one dies now and then, any of them
                if client.answered % 5 == 0:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        client.stop.set()
        client.thread.join()
        assert wire.eventually(
            lambda: (
                len(worker_pids(server)) == 2
                and inspection.settled(server.pid, seconds=0.5).children == 2
            )
        )
        assert {event["worker"] for event in events(server, "worker_serves")} == {1, 2}
        assert events(server, "reloaded")
        assert wire.served(server.address)


def test_workers_that_never_serve_do_not_end_one_that_does(tmp_path: Path) -> None:
    """The first worker serves; its fellow fails again and again, and is tried again and again."""
    (tmp_path / "flaky.py").write_text(
        "import os\n"
        "from echoserver.backends.thread import ThreadBackend\n"
        "class Flaky(ThreadBackend):\n"
        "    def serve(self, listener, service):\n"
        f"        with open({str(tmp_path / 'starts')!r}, 'a+b', buffering=0) as file:\n"
        "            first = file.tell() == 0\n"
        "            file.write(b'x')\n"
        "        if not first: raise RuntimeError('not today')\n"
        "        super().serve(listener, service)\n"
    )
    port = free_port()
    with subprocess.Popen(
        [
            *(command("echoserver"), "--workers", "2", "--port", str(port)),
            *("--backend", f"{tmp_path}/flaky.py:Flaky"),
        ],
        stderr=subprocess.DEVNULL,
    ) as process:
        starts = tmp_path / "starts"
        assert wire.eventually(lambda: starts.exists() and starts.stat().st_size >= 6, 20)
        assert wire.served(("127.0.0.1", port))
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("model", ["process", "thread", "selector"])
def test_a_reload_leaves_clients_time_for_their_first_words(model: str) -> None:
    with echoserver.spawn(backend=model, workers=2) as server:
        socks = [wire.connect(server.address) for _ in range(12)]
        assert wire.eventually(lambda: accept_queue(server.address[1]) == 0)
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: len(events(server, "worker_serves")) > 2)
        time.sleep(0.3)  # being late is what is tested
        for sock in socks:
            sock.sendall(b"HELLO")
        for sock in socks:
            assert wire.read_exactly(sock, 5) == b"HELLO"
            sock.close()
        assert server.stop() == 0


@pytest.mark.parametrize("model", ["process", "thread", "selector"])
def test_a_signal_to_every_process_is_one_to_the_server(model: str) -> None:
    """As service managers send it: to the workers too, which are told by the master as well."""
    data = os.urandom(4 << 20)
    with echoserver.spawn(backend=model, workers=2) as server:
        sock = wire.connect(server.address)
        sender = threading.Thread(target=wire.send_what_is_taken, args=[sock, data])
        sender.start()
        received = wire.read_exactly(sock, 1 << 16)
        for process in reversed(inspection.tree(server.pid)):
            process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # a slow reader is what is tested
        with suppress(OSError):
            while piece := sock.recv(1 << 16):
                received += piece
        sender.join()
        assert data.startswith(received)
        assert server.wait() == 0
