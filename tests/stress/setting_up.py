"""Faults of what surrounds a server: addresses, settings, monitoring, its log, the clock."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import echoserver
from tests.stress.arena import Arena
from tests.stress.model import ITS_OWN, fault
from tests.stress.streams import control
from tests.support import inspection, pace, wire
from tests.support.launching import Child, await_listening, command, free_port, run

PLAIN = {**ITS_OWN, "tls": False}


def words(arena: Arena) -> list[str]:
    """Return the command of this case's server."""
    layout = ["--workers", str(arena.cell.workers)] if arena.cell.workers else []
    return [command("echoserver"), "--backend", str(arena.setting("backend")), *layout]


@fault(27, "port in use, privileged, no such address", **PLAIN, control={"port": 0}, fast=True)
def no_port(arena: Arena) -> str:
    """One sentence, and exit code 3."""
    layout = words(arena)[1:]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = arena.setting("port")
        port = str(other.getsockname()[1] if port is None else port)
        _refused([*layout, "--port", port], 3, "the port is already in use")
    _refused([*layout, "--port", "0", "--host", "192.0.2.1"], 3, "does not have that address")
    _refused([*layout, "--port", "0", "--host", "no-such-host.invalid"], 3, "cannot resolve")
    if os.geteuid() == 0:
        # This Python may be root's alone: the module is there before.
        script = (
            "from echoserver.admission.binding import bind; from echoserver.config import Config; "
            "import encodings.idna, os; os.setgroups([]); os.setresuid(4321, 4321, 4321); "
            "bind(Config(port=1))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=20
        )
        low = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        assert "needs privileges" in done.stderr or low <= 1
    return "exit 3, each named"


def _refused(typed: list[str], code: int, said: str) -> None:
    try:
        result = run("echoserver", *typed, timeout=8)
    except subprocess.TimeoutExpired:
        raise AssertionError("it serves") from None
    assert result.returncode == code, result.stderr
    told = [line for line in result.stderr.splitlines() if line.startswith("echoserver: ")]
    assert len(told) == 1, result.stderr
    assert said in told[0]


@fault(28, "bad option, variable, file", **PLAIN, control={"handler": "echo"}, fast=True)
def bad_settings(arena: Arena) -> str:
    """Each is named, with where it stands."""
    layout = words(arena)[1:]
    if arena.setting("handler") is not None:  # the control: nothing is wrong
        _refused([*layout, "--port", "0"], 2, "--port")
    _refused([*layout, "--port", "soon"], 2, "--port must be a whole number")
    _refused([*layout, "--por-t", "1"], 2, "--por-t")
    _refused([*layout, "--config", "/no/such.toml"], 2, "/no/such.toml")
    result = subprocess.run(
        [command("echoserver"), *layout, "--port", "0"],
        env=os.environ | {"ECHOSERVER_BACKLOG": "many"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 2
    assert "ECHOSERVER_BACKLOG must be a whole number" in result.stderr
    return "exit 2, each named"


@fault(
    29,
    "metrics port taken, scraper hangs",
    **ITS_OWN,
    control=control("NeedsItsMetrics"),
    fast=True,
)
def metrics_in_trouble(arena: Arena) -> str:
    """The data path does not notice."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = arena.start(metrics=f"127.0.0.1:{port}")
        assert inspection.events(server, "metrics_unavailable")
        assert arena.served()
        assert server.stop() == 0
    server = arena.start(metrics="127.0.0.1:0")
    port = inspection.events(server, "listening")[0]["metrics_port"]
    for _ in range(40):
        sock = arena.raw(("127.0.0.1", port))
        sock.sendall(b"GET /metrics HTTP/1.1\r\n")
    worst = 0.0
    for _ in range(20):
        begun = time.monotonic()
        assert arena.served()
        worst = max(worst, time.monotonic() - begun)
    begun = time.monotonic()
    assert server.stop() == 0
    assert pace.within(time.monotonic() - begun, 5)
    return f"served within {worst * 1000:.0f} ms"


@fault(30, "stderr closed, never read, /dev/full", **PLAIN, control=control("Shouts"), fast=True)
def broken_stderr(arena: Arena) -> str:
    """It serves and ends as if somebody read what it says."""
    for kind in ("closed", "never read", "/dev/full"):
        port = free_port()
        typed = [*words(arena), "--port", str(port), "--log-level", "debug"]
        source, sink = os.pipe()
        if kind == "/dev/full":
            os.close(sink)
            sink = os.open("/dev/full", os.O_WRONLY)
        script = 'exec "$@" 2>&-' if kind == "closed" else 'exec "$@"'
        with Child(["sh", "-c", script, "sh", *typed], stderr=sink) as process:
            os.close(sink)
            try:
                address = await_listening(port, process)
                for _ in range(arena.size(400, 150)):
                    assert wire.served(address)
                    wire.opened.pop()
                process.terminate()
                assert process.wait(10) == 0
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                os.close(source)
    return "served"


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@fault(31, "wall clock ±1 h", **PLAIN, control=control("WallClock"))
def clock(arena: Arena) -> str:
    """No timeout depends on what the clock on the wall says."""
    if FAKETIME is None:
        pytest.skip("no libfaketime")
    rate = Path(f"/tmp/echoserver-faketime-{os.getpid()}")  # noqa: S108 - it is named in a variable
    rate.write_text("+0")
    port = free_port()
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(rate),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    typed = [
        *words(arena),
        "--port",
        str(port),
        "--log-format",
        "json",
    ]
    with Child(typed, env=os.environ | environment, stderr=subprocess.PIPE) as process:
        try:
            address = await_listening(port, process)
            sock = wire.connect(address)
            # With this library, each look at a clock reads a file: a pool of threads starts slowly.
            sock.settimeout(3 * wire.patience * pace.slowness())
            assert wire.ask(sock, b"before") == b"before"
            for jump in ("+1h", "-1h"):
                rate.write_text(jump)
                time.sleep(1.2)
                assert wire.ask(sock, b"after") == b"after"
            assert wire.finish(sock) == b""
            begun = time.monotonic()
            process.terminate()
            _, said = process.communicate(timeout=20)
            assert process.returncode == 0
            assert pace.within(time.monotonic() - begun, 5)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            rate.unlink()
    stamps = [json.loads(line)["timestamp"] for line in said.splitlines()]
    assert stamps != sorted(stamps), "the clock did not jump"
    return "unmoved"


@fault(
    41,
    "control bytes in what is logged",
    **ITS_OWN,
    control=control("LogsContent"),
    fast=True,
)
def control_bytes(arena: Arena) -> str:
    """No content is logged, and nothing starts a line of its own."""
    evil = b'\x1b[2J\n{"event": "forged"}\r\n\0'
    server = arena.start(handler="tests/stress/controls.py:Raises", log_level="debug")
    with arena.connect() as sock:
        assert wire.ask(sock, evil) == evil
        sock.sendall(b"raise" + evil)
        wire.read_to_end(sock)
    assert server.stop() == 0
    for line in server.stderr.splitlines():
        assert line.startswith('{"event": '), "content in a line of its own"
        assert json.loads(line)["event"] != "forged"
        assert "\x1b" not in line
        assert "forged" not in line
    assert isinstance(server, echoserver.SpawnedServer)
    return f"{len(server.log)} lines, none forged"
