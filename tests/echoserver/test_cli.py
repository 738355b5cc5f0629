"""The command `echoserver` at the prompt: what it says, and the exit code it says it with."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path
from statistics import median

import click
import pytest

import echoserver
from loadtest import cli as echoload
from tests.conftest import BUILTIN
from tests.support import pace, preforked, wire
from tests.support.inspection import events
from tests.support.launching import command, free_port, run


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a command complained with."""
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_version() -> None:
    for name in ("echoserver", "echoclient", "echoload"):
        assert run(name, "--version").stdout == f"{name} {echoserver.__version__}\n"


def test_list_backends() -> None:
    result = run("echoserver", "--list-backends")
    assert result.returncode == 0
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["backend", "available", "a", "connection", "costs", "model"]
    assert [line.split()[:2] for line in lines] == [[name, "yes"] for name in BUILTIN]
    thread = next(line for line in lines if line.startswith("thread "))
    assert thread.endswith("a thread per client")
    assert "a thread: about 16 KiB" in thread


def test_an_extra_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ModuleNotFoundError('no', name='uvloop')\n")
    without = {"PYTHONPATH": str(tmp_path)}
    result = run("echoserver", "--backend", "uvloop", env=without)
    assert result.returncode == 2
    assert "try: pip install 'echoserver[uvloop]'" in sentence(result)
    listed = run("echoserver", "--list-backends", env=without).stdout.splitlines()
    (line,) = [line for line in listed if line.startswith("uvloop ")]
    assert line.split()[1] == "no"
    assert "pip install 'echoserver[uvloop]'" in line
    assert [line.split()[1] for line in listed[1:]].count("no") == 1


def test_works_as_typed() -> None:
    """``echoserver --backend thread`` listens on 127.0.0.1:9999 until a signal."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 9999))
        except OSError:
            pytest.skip("port 9999 is in use on this machine")
    process = subprocess.Popen(
        [command("echoserver"), "--backend", "thread"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr as log:
        listening = json.loads(log.readline())
        assert listening["event"] == "listening"
        assert (listening["host"], listening["port"]) == ("127.0.0.1", 9999)
        assert (listening["backend"], listening["handler"]) == ("thread", "echo")
        assert listening["pid"] == process.pid
        assert wire.served(("127.0.0.1", 9999))
        process.send_signal(signal.SIGINT)
        last = [json.loads(line) for line in log][-1]
    assert process.wait(10) == 0
    assert last["event"] == "stopped"
    assert last["connections"] == 1
    assert last["bytes_in"] == last["bytes_out"] == len(b"SERVED?")


def test_two_lines_at_any_level() -> None:
    with echoserver.spawn(log_level="critical") as server:
        assert wire.served(server.address)
    assert [event["event"] for event in server.log] == ["listening", "stopped"]


def test_ipv6(exemplar: str) -> None:
    with echoserver.spawn(backend=exemplar, host="::1") as server:
        assert server.host == "::1"
        assert wire.served(server.address)
    with echoserver.spawn(backend=exemplar, host="::") as server:
        assert wire.served(("::1", server.port))
        assert wire.served(("127.0.0.1", server.port))


@pytest.mark.ci
@pytest.mark.parametrize("name", ["echoserver", "echoclient", "echoload"])
def test_help_is_quick(name: str) -> None:
    """At most twice the time of importing click.

    CPU time, and the median of several pairs: the clock on the wall counts what else the machine
    does, and even a CPU is slower at one moment than at the next.
    """

    def time_of(*words: str) -> float:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    pairs = [
        (time_of(command(name), "--help"), time_of(sys.executable, "-c", "import click"))
        for _ in range(9)
    ]
    assert median(help_ / click for help_, click in pairs) <= 2


def test_every_command_in_the_list_is_there() -> None:
    context = click.Context(echoload.command)
    for name in echoload.COMMANDS:
        found = echoload.command.get_command(context, name)
        assert found is not None
        assert found.name == name


@pytest.mark.parametrize(
    "words",
    [
        ("echoserver",),
        ("echoclient",),
        ("echoload",),
        *(("echoload", name) for name in echoload.COMMANDS),
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", command(words[0]), *words[1:], "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"gevent", "structlog", "rich", "psutil", "hdrh", "jinja2", "ssl"}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--backend", "thraed"], 2, ["--backend", "'thraed'", "did you mean 'thread'"]),
        (["--backend", "no.such:Class"], 2, ["--backend", "no module 'no.such'"]),
        (["--backend", "nowhere/file.py:Class"], 2, ["--backend", "no file nowhere/file.py"]),
        (["--backend", "json:JSONDecoder"], 2, ["JSONDecoder", "not a subclass"]),
        (["--backend", "json:Nothing"], 2, ["json has no class Nothing"]),
        (["--handler", "eco"], 2, ["--handler", "did you mean 'echo'"]),
        (["--port", "99999"], 2, ["--port must be a whole number from 0 to 65535", "99999"]),
        (["--port", "http"], 2, ["--port", "'http'"]),
        (["--port", "-1"], 2, ["--port", "-1"]),
        (["--backlog", "0"], 2, ["--backlog"]),
        (["--max-connections", "0"], 2, ["--max-connections"]),
        (["--overload", "panic"], 2, ["--overload must be one of queue, reject"]),
        (["--idle-timeout", "soon"], 2, ["--idle-timeout", "500ms"]),
        (["--drain-timeout", "nan"], 2, ["--drain-timeout"]),
        (["--write-timeout", "-5"], 2, ["--write-timeout"]),
        (["--log-level", "loud"], 2, ["--log-level must be one of debug"]),
        (["--host", ""], 2, ["--host"]),
        (["--host", "no host\n"], 2, ["--host"]),
        (["--host", "host.invalid"], 3, ["--host", "host.invalid"]),
        (["--host", "192.0.2.77"], 3, ["--host", "does not have that address"]),
        (["--config", "/no/such.toml"], 2, ["/no/such.toml", "No such file"]),
        (["--pool-size", "8"], 2, ["--pool-size", "'thread'", "leave one out"]),
        (["--nonsense"], 2, ["--nonsense"]),
        (["surplus"], 2, ["surplus"]),
    ],
    ids=lambda value: " ".join(map(repr, value)) if isinstance(value, list) else str(value),
)
def test_bad_input_is_one_sentence(words: list[str], code: int, says: list[str]) -> None:
    result = preforked.run("echoserver", "--port", "0", *words)
    assert result.returncode == code
    complaint = sentence(result)
    assert complaint.startswith("echoserver: ")
    for part in says:
        assert part in complaint


def test_port_in_use_names_its_source() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, environment, source in [
            (["--port", port], {}, "--port"),
            ([], {"ECHOSERVER_PORT": port}, "ECHOSERVER_PORT"),
        ]:
            result = run("echoserver", *words, env=environment)
            assert result.returncode == 3
            assert "already in use" in sentence(result)
            assert source in sentence(result)
            assert f"127.0.0.1:{port}" in sentence(result)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give rights up")
def test_privileged_port(tmp_path: Path) -> None:
    start = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not int(start.read_text()) > 1:
        pytest.skip("no port is privileged here")
    result = subprocess.run(
        ["setpriv", "--bounding-set=-all", command("echoserver"), "--port", "80"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if "setpriv" in result.stderr:
        pytest.skip(result.stderr)
    assert result.returncode == 3
    assert "privileges" in sentence(result)
    assert "127.0.0.1:80" in sentence(result)


@pytest.mark.ci
def test_plugin_that_cannot_be_imported(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    for text, says in [
        ("def broken(:\n", "line 1"),
        ("raise RuntimeError('on\\npurpose')\n", "RuntimeError: on purpose"),
        ("import a_package_that_is_not_there\n", "pip install a_package_that_is_not_there"),
        ("import sys; sys.exit(0)\n", "SystemExit"),
        ("Name = 1\n", "has no class Name"),
        ("class Name: pass\n", "not a subclass of echoserver.Backend"),
        ("import echoserver\nclass Name(echoserver.Backend): pass\n", "does not define serve"),
    ]:
        plugin.write_text(text)
        result = run("echoserver", "--port", "0", "--backend", f"{plugin}:Name")
        assert result.returncode == 2
        assert says in sentence(result)
        assert "--backend" in sentence(result)


def test_backend_and_handler_from_a_file_and_from_a_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import threading\n"
        "from echoserver import Backend, Handler, Sleep\n"
        "from helper import EXCLAMATION\n"
        "class Threads(Backend):\n"
        "    def serve(self, listener, service):\n"
        "        for connection in listener:\n"
        "            threading.Thread(target=connection.serve, daemon=True).start()\n"
        "        service.drain()\n"
        "class Loud(Handler):\n"
        "    def receive(self, data):\n"
        "        yield data.upper()\n"
        "        yield Sleep(0.01)\n"
        "        yield EXCLAMATION\n"
        "    def finish(self):\n"
        "        return b'bye'\n"
    )
    (tmp_path / "helper.py").write_text("EXCLAMATION = b'!'\n")
    for place in (f"{tmp_path}/mine.py", "mine"):
        port = free_port()
        process = subprocess.Popen(
            [
                *(command("echoserver"), "--port", str(port)),
                *("-b", f"{place}:Threads", "--handler", f"{place}:Loud"),
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        assert process.stderr is not None
        with process.stderr as log:
            assert json.loads(log.readline())["backend"] == f"{place}:Threads"
            with wire.connect(("127.0.0.1", port)) as sock:
                sock.sendall(b"hi")
                assert wire.read_exactly(sock, 3) == b"HI!"
                assert wire.finish(sock) == b"bye"
            process.terminate()
            assert process.wait(10) == 0


def test_a_handler_that_fails_ends_its_connection_only(backend: str, tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(
        "from echoserver import Handler\n"
        "class Fragile(Handler):\n"
        "    def receive(self, data):\n"
        "        if data.startswith(b'secret'):\n"
        "            raise ValueError(data)\n"
        "        if data == b'text':\n"
        "            return 'text'\n"
        "        return data\n"
    )
    handler = f"{tmp_path}/fragile.py:Fragile"
    alone = echoserver.load_backend(backend).concurrency(echoserver.Config()) == 1
    with (
        echoserver.spawn(backend=backend, handler=handler) as server,
        wire.connect(server.address) as other,
    ):
        assert wire.ask(other, b"before") == b"before"
        if alone:
            assert wire.finish(other) == b""
        for poison in (b"secret\npassword", b"text"):
            with wire.connect(server.address) as sock:
                assert wire.ask(sock, b"fine") == b"fine"
                sock.sendall(poison)
                assert wire.read_to_end(sock) == b""
        if not alone:
            assert wire.ask(other, b"after") == b"after"
            assert wire.finish(other) == b""
    # Of two processes, the second to end may be the first to be told of.
    failed = sorted(events(server, "handler_failed"), key=itemgetter("error"), reverse=True)
    assert [event["error"] for event in failed] == ["ValueError", "HandlerTypeError"]
    assert {event["handler"] for event in failed} == {"Fragile"}
    assert "not str" in failed[1]["reason"]
    assert "fragile.py:5 in receive" in failed[0]["where"]
    assert "password" not in server.stderr, "payload is never logged"
    assert server.stopped is not None
    assert server.stopped["handler_errors"] == 2


@pytest.mark.ci
def test_sleeping_handler_parks_its_connection_only(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "from echoserver import Handler, Sleep\n"
        "class Slow(Handler):\n"
        "    def receive(self, data):\n"
        "        yield Sleep(0.5)\n"
        "        yield data\n"
    )
    for backend in BUILTIN:
        if echoserver.load_backend(backend).concurrency(echoserver.Config()) == 1:
            continue
        with echoserver.spawn(backend=backend, handler=f"{tmp_path}/slow.py:Slow") as server:
            socks = [wire.connect(server.address) for _ in range(10)]
            begun = time.monotonic()
            for sock in socks:
                sock.sendall(b"x")
            for sock in socks:
                assert wire.read_exactly(sock, 1) == b"x"
                sock.close()
            elapsed = time.monotonic() - begun
            assert elapsed >= 0.5
            assert pace.within(elapsed, 2.5), "they slept one after the other"


def test_console_log_on_a_terminal() -> None:
    """At a terminal the two lines are for people, and nothing can forge one."""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [command("echoserver"), "--port", "0"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    text = b""
    while b"listening" not in text:
        text += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    while b"stopped" not in text:
        text += os.read(leader, 4096)
    os.close(leader)
    assert b'{"event"' not in text


def test_backlog_beyond_somaxconn_warns() -> None:
    with echoserver.spawn(backlog=2_000_000) as server:
        assert wire.served(server.address)
    (warning,) = events(server, "backlog_capped")
    assert "net.core.somaxconn" in warning["advice"]


@pytest.mark.ci
@pytest.mark.parametrize("hidden", ["clients", "loadtest"])
def test_a_students_file_hides_nothing(hidden: str, tmp_path: Path) -> None:
    (tmp_path / f"{hidden}.py").write_text("raise SystemExit('the wrong file ran')\n")
    for name in ("echoserver", "echoclient", "echoload"):
        result = run(name, "--help", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    result = run(
        *("echoload", "compare", "--backends", "thread", "-c", "2", "-d", "200ms"),
        *("--rounds", "1"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "hidden"), [("echoclient", "clients"), ("echoload", "loadtest")])
def test_a_students_file_on_pythonpath_is_named(name: str, hidden: str, tmp_path: Path) -> None:
    (tmp_path / f"{hidden}.py").write_text("")
    result = run(name, "--help", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert f"{tmp_path}/{hidden}.py hides" in sentence(result)


HOSTILE = """
import sys
from echoserver import Handler, Sleep

class Quotes(Handler):
    def receive(self, data):
        raise ValueError(data.decode())

class Exits(Handler):
    def receive(self, data):
        sys.exit(3)

class SleepsBackwards(Handler):
    def receive(self, data):
        yield Sleep(-1)

class Forgets(Handler):
    def receive(self, data):
        return None

class Skips(Handler):
    def receive(self, data):
        yield b"a"
        yield None
        yield b"b"

class CannotBegin(Handler):
    def __init__(self):
        raise RuntimeError

    def receive(self, data):
        return data

class CannotEnd(Handler):
    def receive(self, data):
        return data

    def finish(self):
        raise RuntimeError
"""


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("Quotes", b""),
        ("Exits", b""),
        ("SleepsBackwards", b""),
        ("Forgets", b""),
        ("Skips", b"a"),
        ("CannotBegin", b""),
        ("CannotEnd", b'x\n{"event": "stopped", "forged": true}'),
    ],
)
def test_nothing_that_a_handler_does_reaches_beyond_its_connection(
    exemplar: str, name: str, answer: bytes, tmp_path: Path
) -> None:
    """Not even when the client then resets the connection; nor does payload reach the log."""
    (tmp_path / "hostile.py").write_text(HOSTILE)
    poison = b'x\n{"event": "stopped", "forged": true}'
    words = ["--pool-size", "1"] if exemplar == "pool" else []
    with echoserver.spawn(
        backend=exemplar, handler=f"{tmp_path}/hostile.py:{name}", arguments=words
    ) as server:
        for _ in range(5):
            with wire.connect(server.address) as sock:
                sock.sendall(poison)
                sock.shutdown(socket.SHUT_WR)
                assert wire.read_to_end(sock) == answer
            rude = wire.connect(server.address)
            rude.sendall(poison)
            if name not in {"CannotBegin", "CannotEnd"}:
                assert wire.read_to_end(rude) == answer
            wire.reset(rude)
    assert server.process.returncode == 0
    assert "forged" not in server.stderr
    assert "Traceback" not in server.stderr
    assert server.stopped is not None
    # The last one may have been in the queue still when the drain found every slot taken.
    assert server.stopped["connections"] + server.stopped["unserved"] == 10, server.stopped
    assert server.stopped["handler_errors"] >= 5
    failures = events(server, "handler_failed")
    assert {event["handler"] for event in failures} == {name}


@pytest.mark.ci
def test_one_client_at_a_time_in_the_main_thread(tmp_path: Path) -> None:
    """The simplest server there is keeps the promises too, although signals find it in recv."""
    (tmp_path / "iterative.py").write_text(
        "from echoserver import Backend\n"
        "class Iterative(Backend):\n"
        "    @classmethod\n"
        "    def concurrency(cls, config):\n"
        "        return 1\n"
        "    def serve(self, listener, service):\n"
        "        for connection in listener:\n"
        "            connection.serve()\n"
        "        service.drain()\n"
    )
    backend = f"{tmp_path}/iterative.py:Iterative"
    for _ in range(5):
        with echoserver.spawn(backend=backend) as server, wire.connect(server.address) as idle:
            assert wire.ask(idle, b"x") == b"x"
            begun = time.monotonic()
            assert server.stop() == 0
            assert pace.within(time.monotonic() - begun, 3)
    with echoserver.spawn(backend=backend, drain_timeout=0.5) as server:
        deaf = wire.connect(server.address, receive_buffer=65536)
        wire.push_until_blocked(deaf, wire.content(16 << 20))
        assert server.stop() == 4
        deaf.close()


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize("words", ["echoserver --list-backends", "echoserver --help"])
def test_output_that_cannot_be_written_is_no_traceback(words: str, redirection: str) -> None:
    name, option = words.split()
    result = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", command(name), option],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "Traceback" not in result.stderr
    if redirection == ">/dev/full":
        assert result.returncode == 1
        assert "No space left" in sentence(result)


def test_timeouts_that_round_badly(exemplar: str) -> None:
    """A struct timeval counts microseconds: 0.9999999 s is no million of them, 0.4 µs is not 0."""
    with echoserver.spawn(
        backend=exemplar, idle_timeout="0.9999999", write_timeout="1.9999999"
    ) as server:
        assert wire.served(server.address)
    with (
        echoserver.spawn(backend=exemplar, idle_timeout="0.4us") as server,
        wire.connect(server.address) as sock,
    ):
        assert wire.read_to_end(sock) == b""


@pytest.mark.parametrize("name", ["echoserver", "echoclient", "echoload"])
def test_a_reader_that_has_seen_enough(name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = run(name, "--help", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert result.returncode == 128 + signal.SIGPIPE
    assert result.stderr == ""
