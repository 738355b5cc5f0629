"""Several processes on one listener: supervised, replaced, pinned; and what SIGHUP changes."""

import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

import echoserver
from tests.echoserver.test_cli import sentence
from tests.support import inspection, pace, wire
from tests.support.inspection import events
from tests.support.launching import Child, changed_server, command, free_port, run
from tests.support.worker_processes import servers_of, worker_pids


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
        Child(
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
        "w._HEARTBEAT_INTERVAL, w.HEARTBEAT_TIMEOUT, w._SUSPENSION_THRESHOLD = 0.2, 2, 1.5"
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
