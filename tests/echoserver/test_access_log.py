"""The access log: a line for each connection, whatever becomes of its file."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from echoserver.monitoring import access_log
from tests.echoserver.test_cli import sentence
from tests.support import inspection, pace, wire
from tests.support.launching import (
    Child,
    await_listening,
    changed_server,
    command,
    free_port,
    run,
    serving,
    task_limit,
)
from tests.support.monitoring import lines, metrics, monitored


@pytest.mark.parametrize("processes", [None, 2])
def test_a_line_for_each_connection(exemplar: str, processes: int | None, tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    with serving(exemplar, access_log=file, workers=processes, idle_timeout=0.5) as server:
        with wire.connect(server.address) as sock:
            peer = "{}:{}".format(*sock.getsockname())
            assert wire.ask(sock, b"hello") == b"hello"
            assert wire.finish(sock) == b""
        with wire.connect(server.address) as sock:
            assert wire.read_to_end(sock) == b""
        assert wire.eventually(lambda: len(lines(file)) == 2)
        reset = wire.connect(server.address)
        assert wire.ask(reset, b"hello") == b"hello"
        wire.reset(reset)
        assert wire.eventually(lambda: len(lines(file)) == 3)
        assert server.stop() == 0
    first, second, third = lines(file)
    assert first.items() >= {"peer": peer, "outcome": "eof", "bytes_in": 5, "bytes_out": 5}.items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert second["outcome"] == "idle_timeout"
    assert 0.4 < second["seconds"] < 5
    assert third["outcome"] == "reset"


@pytest.mark.slow
@pytest.mark.ci
def test_a_log_that_nobody_takes_drops_lines_and_counts_them(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with monitored("selector", access_log=fifo) as (server, base):
            load = ("-c", "20", "-n", "20000", "--reconnect-every", "1")
            where = f"127.0.0.1:{server.port}"
            assert run("echoload", "run", where, *load, timeout=50).returncode == 0
            assert wire.eventually(lambda: metrics(base)["lines_dropped_total/access"] > 0)
            assert wire.eventually(lambda: metrics(base)["connections_total"] >= 20_000)
            found = metrics(base)
            assert found["lines_dropped_total/access"] < found["connections_total"]
            begun = time.monotonic()
            assert server.stop() == 0
            assert pace.within(time.monotonic() - begun, 10)
    finally:
        os.close(reader)


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    with monitored(access_log="/dev/full") as (server, base):
        for _ in range(10):
            assert wire.served(server.address)
        assert wire.eventually(lambda: metrics(base)["access_log_lines_lost_total"] == 10)
        assert server.stop() == 0


@pytest.mark.parametrize("processes", [None, 2])
def test_sighup_opens_the_log_anew(processes: int | None, tmp_path: Path) -> None:
    file, old = tmp_path / "access.log", tmp_path / "access.log.1"
    with serving(access_log=file, workers=processes) as server:
        assert wire.served(server.address)
        assert wire.eventually(lambda: len(lines(file)) == 1)
        file.rename(old)
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: inspection.events(server, "reloaded"))
        assert wire.eventually(lambda: wire.served(server.address) and file.exists())
        assert wire.eventually(lambda: lines(file))
        assert server.stop() == 0


def test_nothing_is_lost_when_the_server_ends(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    with serving("selector", access_log=file) as server:
        socks = [wire.connect(server.address) for _ in range(100)]
        assert all(wire.ask(sock, b"hello") == b"hello" for sock in socks)
        assert server.stop() == 0
    assert len(lines(file)) == 100
    assert {line["outcome"] for line in lines(file)} == {"drained"}


@pytest.mark.parametrize("option", ["--access-log=-", "--metrics=127.0.0.1:0"])
def test_a_system_that_has_no_process_left_for_it(option: str) -> None:
    server = [command("echoserver"), "--port", "0", option]
    with (
        Child(
            ["sh", "-c", 'read go && exec "$@"', "sh", *server],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        task_limit([process.pid], spare=0),
    ):
        said = process.communicate("go\n", timeout=60)[1]
    assert process.returncode == 3
    assert said.startswith("echoserver: cannot start a process for --metrics or --access-log: ")
    assert said.count("\n") == 1


def test_an_access_log_that_cannot_be_written() -> None:
    result = run("echoserver", "--port", "0", "--access-log", "/no/such/folder/log")
    assert result.returncode == 3
    assert "--access-log: cannot write /no/such/folder/log: No such file" in sentence(result)


def test_an_access_log_that_nobody_reads(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = run("echoserver", "--port", "0", "--access-log", str(pipe))
    assert result.returncode == 3
    assert f"--access-log: nobody reads the pipe {pipe}" in sentence(result)


def test_the_writer_takes_sighup_before_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGHUP that came in the moment between was lost, and the file not reopened."""
    monkeypatch.setattr(access_log._Writer, "run", lambda *_, **__: signal.pause())
    written = access_log.AccessLog(str(tmp_path / "access.log"), None)
    stub: Any = SimpleNamespace(fd=2)
    helper = written.start(stub, stub)
    try:
        status = Path(f"/proc/{helper.pid}/status").read_text()
        (caught,) = (line for line in status.splitlines() if line.startswith("SigCgt:"))
        assert int(caught.split()[1], 16) >> (signal.SIGHUP - 1) & 1
    finally:
        helper.stop(0)
        written.close()
        written.release()


def test_an_access_log_that_cannot_be_opened_anew(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = folder / "access.log"
    with serving(access_log=file) as server:
        folder.rename(tmp_path / "old")
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(
            lambda: (
                wire.served(server.address) and inspection.events(server, "access_log_not_reopened")
            )
        )
        assert wire.eventually(lambda: lines(tmp_path / "old" / "access.log"))
        assert server.stop() == 0


def test_a_line_that_was_torn_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    with monitored(access_log=file) as (server, base):

        def lost() -> float:
            return metrics(base)["access_log_lines_lost_total"]

        assert wire.served(server.address)
        assert wire.eventually(lambda: len(lines(file)) == 1)
        room = file.stat().st_size + 20  # for a part of the next line
        writers = [one for one in inspection.tree(server.pid) if _holds(one, file)]
        for one in writers:
            resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        for count in (1, 2):
            assert wire.served(server.address)
            assert wire.eventually(partial(_is, lost, count))
        for one in writers:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(one.pid, resource.RLIMIT_FSIZE, unlimited)
        assert wire.served(server.address)
        assert wire.eventually(lambda: file.read_bytes().count(b"\n") == 3)
        first, torn, last = file.read_text().splitlines()
        assert json.loads(first)["outcome"] == json.loads(last)["outcome"] == "eof"
        assert len(torn) == 20
        assert lost() == 2


def _is(figure: Callable[[], float], value: float) -> bool:
    return figure() == value


def _holds(process: psutil.Process, file: Path) -> bool:
    return str(file) in {one.path for one in process.open_files()}


def test_a_server_that_ends_waits_for_the_last_line(tmp_path: Path) -> None:
    """A thread may have to wait for a core just when its connection is over."""
    change = (
        "import time; from echoserver.monitoring.access_log import AccessLog; "
        "write = AccessLog.write; "
        "AccessLog.write = lambda *values: (time.sleep(0.5), write(*values))"
    )
    file = tmp_path / "access.log"
    with changed_server(change, "--access-log", str(file)) as (process, address):
        assert wire.served(address)
        process.terminate()
        assert process.wait(20) == 0
    assert [line["bytes_in"] for line in lines(file)] == [len(b"SERVED?")]


def test_the_access_log_on_standard_output() -> None:
    port = free_port()
    words = [command("echoserver"), "--port", str(port), "--access-log", "-"]
    with Child(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        address = await_listening(port, process)
        assert wire.served(address)
        process.terminate()
        out, _ = process.communicate(timeout=20)
    assert len(b"SERVED?") in {json.loads(line)["bytes_in"] for line in out.splitlines()}
