"""A second signal ends the server at once, whatever its main flow is doing."""

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import echoserver
from echoserver.lifecycle.main_wait import Lifecycle
from tests.support import inspection, pace, wire
from tests.support.launching import Child, serving

# Hangs when a file is there: while it is imported, or while it answers.
PLUGIN = """
import os, time
from echoserver import Handler

def hang(what):
    while os.path.exists({folder!r} + what):
        open({folder!r} + what + "-reached", "w").close()
        time.sleep(60)

hang("import")

class Plugin(Handler):
    def receive(self, data):
        hang("receive")
        return data
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN.format(folder=f"{tmp_path}/"))
    return path


def end_by_signals(server: echoserver.SpawnedServer) -> dict[str, Any]:
    """Send SIGTERMs until it ends; return what is logged of an end by force."""
    begun = time.monotonic()
    while server.process.poll() is None and pace.within(time.monotonic() - begun, wire.patience):
        server.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(0.5)
    assert server.wait() == 128 + signal.SIGTERM
    assert wire.eventually(lambda: not inspection.session(server.pid)), "nobody is left"
    (event,) = inspection.events(server, "ended_by_force")
    return event


def test_while_a_name_server_does_not_answer() -> None:
    """There is nothing to drain yet, and getaddrinfo(3) lets no handler run."""
    program = (
        "import socket, time\n"
        "def resolve(*words, **more): print('asked', flush=True); time.sleep(60)\n"
        "socket.getaddrinfo = resolve\n"
        "from echoserver.launch import echoserver; echoserver()"
    )
    words = [sys.executable, "-c", program, "--host", "no-such-host.invalid"]
    with Child(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"asked\n"
        process.terminate()
        assert process.wait(wire.patience) == -signal.SIGTERM


@pytest.mark.ci
@pytest.mark.parametrize("processes", [None, 2])
def test_while_a_reload_hangs(processes: int | None, plugin: Path, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text(f'handler = "{plugin}:Plugin"')
    arguments = ["--config", str(config)]
    with serving("selector", arguments=arguments, workers=processes) as server:
        (tmp_path / "import").touch()
        server.process.send_signal(signal.SIGHUP)
        assert wire.eventually((tmp_path / "import-reached").exists)
        event = end_by_signals(server)
        assert event["exit_code"] == 128 + signal.SIGTERM


@pytest.mark.parametrize("backend_name", ["selector", "iterative"])
def test_while_a_handler_hangs(backend_name: str, plugin: Path, tmp_path: Path) -> None:
    path = tmp_path / "echo"
    host = ("127.0.0.1", f"unix:{path}")
    with serving(backend_name, handler=f"{plugin}:Plugin", host=host) as server:
        assert path.exists()
        (tmp_path / "receive").touch()
        wire.connect(server.address).sendall(b"hang")
        assert wire.eventually((tmp_path / "receive-reached").exists)
        end_by_signals(server)
    assert not path.exists(), "the file goes with the process that made it"


def test_a_signal_during_an_end_by_force_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler interrupts the hooks; the log had the line twice."""
    lifecycle = Lifecycle(1.0)
    calls: list[str] = []
    exits: list[int] = []

    def hook() -> None:
        calls.append("hook")
        lifecycle._await_main_flow()  # as the handler does

    monkeypatch.setattr(os, "_exit", exits.append)
    lifecycle.on_forced_end(hook)
    lifecycle._second_signal_time = -math.inf
    lifecycle._await_main_flow()
    lifecycle.close()
    assert (calls, len(exits)) == (["hook"], 1)


@pytest.mark.ci
@pytest.mark.parametrize("backend_name", ["iterative", "thread"])
def test_the_time_to_notice_begins_with_the_second_signal(backend_name: str) -> None:
    """The first may be long ago: a drain takes its time."""
    with serving(backend_name, drain_timeout=30) as server:
        deaf = wire.connect(server.address, receive_buffer=4096)
        wire.push_until_blocked(deaf, wire.content(16 << 20))
        server.process.send_signal(signal.SIGTERM)
        time.sleep(2.5)  # more than a main flow has for a second one
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        assert server.stopped is not None
        assert server.stopped["cut"] == 1
        assert not inspection.events(server, "ended_by_force")


def test_a_main_flow_that_comes_back_ends_the_server_itself(tmp_path: Path) -> None:
    """Nothing is cut short that a second signal has always been given the time for."""
    with serving("thread") as server:
        deaf = wire.connect(server.address, receive_buffer=4096)
        wire.push_until_blocked(deaf, wire.content(16 << 20))
        server.process.send_signal(signal.SIGTERM)
        assert wire.eventually(lambda: inspection.events(server, "draining"))
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        assert server.stopped is not None
        assert server.stopped["cut"] == 1
        assert not inspection.events(server, "ended_by_force")
