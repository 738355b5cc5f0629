"""SIGHUP: a reload in place, and one worker after the other."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

import echoserver
from loadtest.machine.sockets import accept_queue
from tests.support import inspection, wire
from tests.support.inspection import events
from tests.support.launching import Child, command, free_port
from tests.support.worker_processes import worker_pids


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


def test_a_worker_of_a_given_up_reload_serves_nobody_who_was_waiting(
    toml: Path, tmp_path: Path
) -> None:
    """It was still starting when it was told to leave; a client was in the queue by then."""
    flag, first, second = (tmp_path / name for name in ("short", "first", "second"))
    plugin = tmp_path / "fails.py"
    plugin.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from echoserver.backends.selector import SelectorBackend\n"
        "class Fails(SelectorBackend):\n"
        "    def serve(self, listener, service):\n"
        "        if service.config.handler == 'upper':\n"
        "            try:\n"
        f"                Path({str(first)!r}).touch(exist_ok=False)\n"
        "            except FileExistsError:\n"
        f"                Path({str(second)!r}).touch()\n"
        "                while service.lifecycle.running: time.sleep(0.01)\n"
        "            else:\n"
        f"                while not Path({str(second)!r}).exists(): time.sleep(0.01)\n"
        "                raise RuntimeError('the first of the reload')\n"
        f"        elif Path({str(flag)!r}).exists():\n"
        "            raise RuntimeError('not today')\n"
        "        super().serve(listener, service)\n"
    )
    port = toml.read_text() + f"backend = '{plugin}:Fails'\n"
    toml.write_text(port)
    arguments = ["--config", str(toml)]
    with echoserver.spawn(workers=2, backend=None, port=None, arguments=arguments) as server:
        flag.touch()
        for pid in worker_pids(server):
            os.kill(pid, signal.SIGKILL)
        assert wire.eventually(lambda: len(events(server, "worker_died")) > 4)
        with wire.connect(server.address) as waiting:
            waiting.sendall(b"shout")
            toml.write_text(port + "handler = 'upper'\n")
            os.kill(server.pid, signal.SIGHUP)
            assert wire.eventually(lambda: events(server, "reload_failed"))
            assert wire.eventually(lambda: events(server, "worker_stopped"))
            flag.unlink()
            assert wire.read_exactly(waiting, 5) == b"shout"


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
        "        try:\n"
        f"            os.open({str(tmp_path / 'served')!r}, os.O_CREAT | os.O_EXCL)\n"
        "        except FileExistsError:\n"
        f"            with open({str(tmp_path / 'failures')!r}, 'ab') as file: file.write(b'x')\n"
        "            raise RuntimeError('not today') from None\n"
        "        super().serve(listener, service)\n"
    )
    port = free_port()
    with Child(
        [
            *(command("echoserver"), "--workers", "2", "--port", str(port)),
            *("--backend", f"{tmp_path}/flaky.py:Flaky"),
        ],
        stderr=subprocess.DEVNULL,
    ) as process:
        failures = tmp_path / "failures"
        assert wire.eventually(lambda: failures.exists() and failures.stat().st_size >= 5, 20)
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
