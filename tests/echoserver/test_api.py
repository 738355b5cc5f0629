"""The Python API, and the pytest plugin, as another project's tests use them."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import echoserver
from echoserver.monitoring.log import Log
from tests.support import inspection, pace, wire
from tests.support.launching import Child

pytest_plugins = ["pytester"]


def test_spawn_by_default() -> None:
    with echoserver.spawn() as server:
        assert server.host == "127.0.0.1"
        assert server.address == (server.host, server.port)
        assert wire.served(server.address)
        running = server.stopped
    assert running is None
    assert server.process.returncode == 0
    assert server.stopped is not None
    assert server.stopped["connections"] == 1


def test_spawn_says_what_was_wrong() -> None:
    with pytest.raises(echoserver.ConfigError, match="did you mean 'gevent'"):
        echoserver.spawn(backend="gevnt")
    with echoserver.spawn() as server, pytest.raises(echoserver.BootError, match="in use"):
        echoserver.spawn(port=server.port)


def test_spawn_is_not_swayed_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOSERVER_BACKEND", "nonsense")
    with echoserver.spawn() as server:
        assert wire.served(server.address)


def test_the_server_goes_when_its_spawner_is_killed() -> None:
    script = (
        "import echoserver, time\n"
        "server = echoserver.spawn(backend='process')\n"
        "print(server.pid, server.port, flush=True)\n"
        "time.sleep(600)\n"
    )
    with Child([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        pid, port = map(int, it.stdout.readline().split())
        with wire.connect(("127.0.0.1", port)) as sock:
            assert wire.ask(sock, b"x") == b"x"
            it.kill()
            it.wait()
            assert wire.eventually(lambda: not inspection.session(pid))


def test_serve_in_this_process() -> None:
    script = (
        "import echoserver, signal, sys\n"
        "code = echoserver.serve(echoserver.Config(port=0), log_format='json')\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "sys.exit(f'exit code {code}')\n"
    )
    with Child([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as it:
        assert it.stderr is not None
        listening = json.loads(it.stderr.readline())
        assert wire.served((listening["host"], listening["port"]))
        it.terminate()
        lines = it.stderr.read().splitlines()
    assert json.loads(lines[-2])["event"] == "stopped"
    assert lines[-1] == "exit code 0"


def test_a_program_that_goes_on_after_its_server_has_every_descriptor_back(tmp_path: Path) -> None:
    script = (
        "import echoserver, os, signal, sys, threading\n"
        "def descriptors():\n"
        "    return len(os.listdir('/proc/self/fd'))\n"
        "before = descriptors()\n"
        "for workers in (None, 2):\n"
        "    print('next', file=sys.stderr, flush=True)\n"
        "    echoserver.serve(port=0, metrics='127.0.0.1:0', access_log=sys.argv[1],\n"
        "        log_format='json', workers=workers)\n"
        "    assert descriptors() == before, (workers, descriptors(), before)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "access.log")]
    with Child(words, stderr=subprocess.PIPE, text=True) as it:
        assert it.stderr is not None
        said = []
        for line in it.stderr:
            said.append(line)
            if '"listening"' in line:
                it.terminate()
    assert it.returncode == 0, said


def test_serve_outside_the_main_thread_is_refused() -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            echoserver.serve(port=0)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "spawn" in str(caught[0])


def test_available_backends() -> None:
    infos = {info.name: info for info in echoserver.available_backends()}
    assert set(infos) >= {"process", "thread", "pool", "gevent"}
    assert all(info.available and info.summary for info in infos.values())


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    """Without gevent everything else works, and its backend says what to install."""
    (tmp_path / "gevent.py").write_text("raise ModuleNotFoundError(name='gevent')\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import echoserver\n"
        "for info in echoserver.available_backends(): print(info.name, info.available, info.hint)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    lines = result.stdout.splitlines()
    assert "thread True " in lines
    assert next(line for line in lines if "pip install gevent" in line).startswith("gevent False")


def test_every_public_name_resolves() -> None:
    for name in echoserver.__all__:
        assert getattr(echoserver, name).__doc__
    assert set(echoserver.__all__) <= set(dir(echoserver))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = echoserver.nonsense


def test_importing_it_imports_little() -> None:
    script = "import echoserver, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"click", "gevent", "structlog", "psutil", "clients"} & set(result.stdout.split())


@pytest.mark.ci
def test_pytest_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        clients="raise SystemExit('a student has such a file')",
        test_it="""
        import socket
        import sys
        import pytest

        def ask(address, data):
            with socket.create_connection(address) as sock:
                sock.sendall(data)
                return sock.recv(100)

        def test_default(echo_server):
            assert ask(echo_server.address, b"hi") == b"hi"
            assert "loadtest" not in sys.modules and "clients" not in sys.modules

        @pytest.mark.echo_server(backend="gevent", handler="upper")
        class TestUpper:
            def test_it(self, echo_server):
                assert echo_server.log[0]["backend"] == "gevent"
                assert ask(echo_server.address, b"hi") == b"HI"

            @pytest.mark.echo_server(handler="echo")
            def test_inner_wins(self, echo_server):
                assert echo_server.log[0]["backend"] == "gevent"
                assert ask(echo_server.address, b"hi") == b"hi"
        """,
    )
    result = pytester.runpytest_subprocess("--strict-markers", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("port", 99999),
        ("port", "http"),
        ("pool_size", 0),
        ("idle_timeout", -1),
        ("max_connections", 0),
        ("overload", "panic"),
        ("log_level", "loud"),
        ("write_timeout", "soon"),
        ("host", ""),
    ],
)
def test_settings_are_checked_whoever_gives_them(setting: str, value: object) -> None:
    with pytest.raises(echoserver.ConfigError, match=f"^{setting} must be"):
        echoserver.Config(**{setting: value})  # type: ignore[arg-type]


def test_settings_mean_what_was_typed() -> None:
    config = echoserver.Config(idle_timeout="500ms", port="7777")  # type: ignore[arg-type]
    assert (config.idle_timeout, config.port) == (0.5, 7777)


def test_stop_keeps_its_time_although_a_grandchild_keeps_the_log(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text(
        "import subprocess\n"
        "from echoserver import Handler\n"
        "class Leaves(Handler):\n"
        "    def receive(self, data):\n"
        "        subprocess.Popen(['sleep', '5'])\n"
        "        return data\n"
    )
    server = echoserver.spawn(handler=f"{tmp_path}/leaves.py:Leaves")
    with wire.connect(server.address) as sock:
        assert wire.ask(sock, b"x") == b"x"
    begun = time.monotonic()
    assert server.stop() == 0
    assert pace.within(time.monotonic() - begun, 3)


def test_a_log_line_cannot_be_forged(capfd: pytest.CaptureFixture[str]) -> None:
    for log_format in ("json", "console"):
        log = Log(echoserver.Config(log_format=log_format))
        log.info("event", peer='x\n{"event": "stopped"}\x1b[2J')
        shown = capfd.readouterr().err
        assert len(shown.splitlines()) == 1
        assert "\x1b[2J" not in shown
        assert "\\n" in shown
