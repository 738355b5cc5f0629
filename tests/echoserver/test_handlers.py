"""What is done with the bytes: options, waiting, computing."""

import os
import subprocess
import time
from pathlib import Path

import pytest

import echoserver
from echoserver.errors import ConfigError
from echoserver.handlers import Handler, Sleep
from echoserver.handlers.cpu import CpuHandler
from echoserver.handlers.options import bind_options
from loadtest.machine.sockets import accept_queue
from tests.echoserver.test_cli import sentence
from tests.support import inspection, pace, preforked, wire
from tests.support.launching import Child, await_listening, command, free_port, run, terminate


class Picky(Handler):
    """Takes an option of every kind."""

    def __init__(
        self, count: int = 1, ratio: float = 0.5, name: str = "x", *, loud: bool = False
    ) -> None:
        if count < 0:
            raise ValueError("count must not be negative")
        self.told = (count, ratio, name, loud)

    def receive(self, data: bytes) -> bytes:
        return data


def told(*options: tuple[str, str]) -> object:
    made = bind_options(Picky, options, "--handler-option")()
    assert isinstance(made, Picky)
    return made.told


def test_options_are_the_constructors_parameters() -> None:
    assert told() == (1, 0.5, "x", False)
    assert told(("count", "3"), ("ratio", "2.5"), ("name", "y"), ("loud", "yes")) == (
        (3, 2.5, "y", True)
    )


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("cuont", "3"), "no option 'cuont'; did you mean 'count'? (its options: count, ratio"),
        (("count", "3.5"), "count must be a whole number, not '3.5'"),
        (("ratio", "half"), "ratio must be a number, not 'half'"),
        (("loud", "maybe"), "loud must be yes or no, not 'maybe'"),
        (("count", "-1"), "count=-1: count must not be negative"),
    ],
)
def test_a_bad_option_is_one_sentence(option: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        told(option)
    assert says in str(caught.value)
    assert str(caught.value).startswith("--handler-option: ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--handler-option", "seconds"], "--handler-option must be KEY=VALUE, not 'seconds'"),
        (["--handler-option", "=1"], "KEY=VALUE"),
        (["--handler-option", "seconds=-1"], "cannot sleep for -1.0 seconds"),
        (["--handler-option", "seconds=soon"], "seconds must be a number, not 'soon'"),
        (["--handler-option", "milliseconds=1"], "did you mean 'seconds'"),
        (["--handler-option", "seconds=1", "--handler-option", "seconds=2"], "given twice"),
    ],
)
def test_bad_options_at_the_prompt(words: list[str], says: str) -> None:
    result = preforked.run("echoserver", "--port", "0", "--handler", "sleep", *words)
    assert result.returncode == 2
    assert says in sentence(result)


def test_options_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("handler = 'sleep'\nhandler-option = {seconds = 0.5}\n")
    assert echoserver.load_config(environment={}, file=file).handler_option == (("seconds", "0.5"),)
    environment = {"ECHOSERVER_HANDLER_OPTION": "seconds=2, other=3"}
    config = echoserver.load_config(environment=environment, file=file)
    assert config.handler_option == (("seconds", "2"), ("other", "3"))
    config = echoserver.load_config({"handler_option": ("a=1", "b=2=3")}, environment={})
    assert config.handler_option == (("a", "1"), ("b", "2=3"))


def test_sleep_waits_and_answers_with_the_same_bytes(backend: str) -> None:
    with echoserver.spawn(
        backend=backend, handler="sleep", handler_option={"seconds": 0.2}
    ) as server:
        alone = echoserver.load_backend(backend).concurrency(echoserver.Config()) == 1
        socks = [wire.connect(server.address) for _ in range(1 if alone else 20)]
        begun = time.monotonic()
        for sock in socks:
            sock.sendall(b"anything")
        for sock in socks:
            assert wire.read_exactly(sock, 8) == b"anything"
        elapsed = time.monotonic() - begun
        assert elapsed >= 0.2
        assert pace.within(elapsed, 2), "they slept one after the other"
        assert inspection.cpu_seconds(server.pid) < 1.5


def test_a_peer_that_leaves_a_sleeper(backend: str) -> None:
    """It ends while its answer is still to come; a readable socket must not be spun on."""
    with echoserver.spawn(
        backend=backend, handler="sleep", handler_option={"seconds": 0.6}
    ) as server:
        with wire.connect(server.address) as sock:
            sock.sendall(b"question")
            before = inspection.cpu_seconds(server.pid)
            assert wire.finish(sock) == b"question"
            assert inspection.cpu_seconds(server.pid) - before < 0.2
        with wire.connect(server.address) as sock:
            sock.sendall(b"question")
            wire.reset(sock)
        assert wire.ask(wire.connect(server.address), b"next") == b"next"
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("count", [None, 1])
def test_a_sleeper_does_not_outlast_the_drain(backend: str, count: int | None) -> None:
    server = echoserver.spawn(
        backend=backend,
        workers=count,
        handler="sleep",
        handler_option={"seconds": 40},
        drain_timeout=0.5,
    )
    with server, wire.connect(server.address) as sock:
        sock.sendall(b"question")
        assert wire.eventually(lambda: accept_queue(server.address[1]) == 0)
        begun = time.monotonic()
        assert server.stop() == 4
        assert pace.within(time.monotonic() - begun, 6)
        assert server.stopped is not None
        assert server.stopped["cut"] == 1


def test_cpu_computes_for_as_long_as_it_says() -> None:
    handler = CpuHandler(milliseconds=20)
    times = []
    for _ in range(9):
        begun = time.thread_time()
        assert handler.receive(b"data") == b"data"
        times.append(time.thread_time() - begun)
    assert 0.010 < min(times) < 0.045
    assert CpuHandler(milliseconds=0).receive(b"data") == b"data"
    for wrong in (-1, 1e9, float("nan")):
        with pytest.raises(ValueError, match="cannot compute"):
            CpuHandler(milliseconds=wrong)


def test_cpu_costs_the_server_cpu() -> None:
    with echoserver.spawn(
        handler="cpu", handler_option={"milliseconds": 10}, backend="selector"
    ) as server:
        with wire.connect(server.address) as sock:
            before = inspection.cpu_seconds(server.pid)
            for _ in range(20):
                assert wire.ask(sock, b"x") == b"x"
        assert inspection.cpu_seconds(server.pid) - before > 20 * 0.005


def test_the_cpu_of_threads_that_have_ended_counts() -> None:
    with echoserver.spawn(handler="cpu", handler_option={"milliseconds": 10}) as server:
        before = inspection.cpu_seconds(server.pid)
        for _ in range(20):
            with wire.connect(server.address) as sock:
                assert wire.ask(sock, b"x") == b"x"
                assert wire.finish(sock) == b""
        assert wire.eventually(lambda: inspection.state(server.pid).threads == 1)
        assert inspection.cpu_seconds(server.pid) - before > 20 * 0.005


def test_whatever_setdefaulttimeout_says(backend: str, tmp_path: Path) -> None:
    """It is for every socket that is made in a program, and a plugin may call it."""
    (tmp_path / "timed.py").write_text(
        "import socket\n"
        "from echoserver.handlers.echo import EchoHandler\n"
        "socket.setdefaulttimeout(0.1)\n"
        "class Timed(EchoHandler): pass\n"
    )
    with (
        echoserver.spawn(backend=backend, handler=f"{tmp_path}/timed.py:Timed") as server,
        wire.connect(server.address) as sock,
    ):
        assert wire.ask(sock, b"one") == b"one"
        time.sleep(0.3)  # being silent is what is tested
        assert wire.ask(sock, b"two") == b"two"
        assert wire.finish(sock) == b""


def test_a_handler_from_an_installed_package(tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(
        "from echoserver.handlers.upper import UpperHandler as Shout\n"
    )
    package = tmp_path / "shouting-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[echoserver.handlers]\nshout = shouting:Shout\n")
    port = free_port()
    with Child(
        [command("echoserver"), "--handler", "shout", "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    ) as process:
        with wire.connect(await_listening(port, process)) as sock:
            assert wire.ask(sock, b"quiet") == b"QUIET"
        assert terminate(process) == 0


def test_a_sleep_is_checked_where_it_is_made() -> None:
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cannot sleep"):
            Sleep(wrong)


def test_annotations_that_cannot_be_evaluated(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from echoserver.handlers.echo import EchoHandler\n"
        "if TYPE_CHECKING:\n"
        "    from pathlib import Path\n"
        "class Typed(EchoHandler):\n"
        "    def __init__(self, folder: Path = 'x', count: int = 1):\n"
        "        if not isinstance(count, int): raise TypeError('count')\n"
    )
    options = {"folder": "y", "count": "3"}
    handler = f"{tmp_path}/typed.py:Typed"
    with echoserver.spawn(handler=handler, handler_option=options) as server:
        assert wire.served(server.address)
    with pytest.raises(ConfigError, match="count must be a whole number"):
        echoserver.spawn(handler=handler, handler_option={"count": "three"})


def test_a_handler_that_cannot_be_made_is_found_out_at_once(tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text(
        "import echoserver\n"
        "class Needy(echoserver.Handler):\n"
        "    def __init__(self, need): self.need = need\n"
        "    def receive(self, data): return data\n"
    )
    result = run("echoserver", "--port", "0", "--handler", f"{tmp_path}/needy.py:Needy")
    assert result.returncode == 2
    assert "the handler Needy needs its option 'need'" in sentence(result)
