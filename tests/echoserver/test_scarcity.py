"""Few file descriptors, and what is left over at the end: each gets a sentence and an exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import inspection, wire
from tests.support.launching import Child, command, serving


def limited(descriptors: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a server with so many descriptors, which is told to stop as soon as it listens."""
    stopper = (
        "import json, os, signal, sys\n"
        "for line in sys.stdin:\n"
        "    print(line, end='')\n"
        "    if '\"listening\"' in line:\n"
        "        os.kill(json.loads(line)['pid'], signal.SIGTERM)\n"
    )
    script = f'ulimit -n {descriptors}; "$@" --port 0 2>&1 >&3; echo "code $?"'
    pipeline = f'{{ {script}; }} 3>&1 | {sys.executable} -c "$STOPPER"'
    return subprocess.run(
        ["bash", "-c", pipeline, "bash", command("echoserver"), *words],
        env=os.environ | {"STOPPER": stopper},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.ci
@pytest.mark.parametrize("descriptors", [8, 10, 16, 31])
def test_too_few_descriptors_to_serve_at_all(descriptors: int, exemplar: str) -> None:
    out = limited(descriptors, "-b", exemplar).stdout
    assert out.splitlines()[-1] == "code 3"
    assert f"may open {descriptors} files" in out
    assert "ulimit -n" in out
    assert len(out.splitlines()) == 2, "a sentence"


@pytest.mark.parametrize(("descriptors", "clients"), [(32, 16), (64, 32), (128, 64), (300, 236)])
def test_few_descriptors_are_shared_out_and_said(descriptors: int, clients: int) -> None:
    out = limited(descriptors).stdout
    assert out.splitlines()[-1] == "code 0"
    (line,) = (line for line in out.splitlines() if "descriptors_scarce" in line)
    assert f'"max_connections": {clients}, "descriptors": {descriptors}' in line


def test_enough_descriptors_are_not_worth_a_word() -> None:
    assert "descriptors_scarce" not in limited(1024).stdout


def test_more_connections_than_descriptors_are_warned_of() -> None:
    line = next(
        line
        for line in limited(1024, "--max-connections", "1000").stdout.splitlines()
        if "descriptors_scarce" in line
    )
    assert '"max_connections": 1000, "descriptors": 1024' in line


# -- what is left over ---------------------------------------------------------------------------

LEAVES_A_THREAD = """
import threading
from echoserver import Handler

class Leaves(Handler):
    def receive(self, data):
        threading.Thread(target=threading.Event().wait, name="left behind").start()
        return data
"""


def test_a_thread_that_is_left_keeps_no_process(exemplar: str, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(LEAVES_A_THREAD)
    with serving(exemplar, handler=f"{plugin}:Leaves") as server:
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"leave") == b"leave"
        assert server.stop() == 0
        assert server.stopped is not None
        told = inspection.events(server, "threads_left")
        # With the backend process, it was the child's, and ended with it.
        assert [one["threads"] for one in told] == ([["left behind"]] if told else [])
        assert bool(told) == (exemplar != "process")


def test_what_was_registered_for_the_end_is_still_done(tmp_path: Path) -> None:
    plugin, mark = tmp_path / "plugin.py", tmp_path / "mark"
    plugin.write_text(
        LEAVES_A_THREAD
        + f"\nimport atexit, pathlib\natexit.register(pathlib.Path({str(mark)!r}).touch)\n"
    )
    with serving("selector", handler=f"{plugin}:Leaves") as server:
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"leave") == b"leave"
        assert server.stop() == 0
    assert mark.exists()


# -- told to leave while it starts ---------------------------------------------------------------

# On a busy machine, all that comes after the second signal can take longer than the main flow has.
PATIENT = (
    "from echoserver import launch; from echoserver.lifecycle import signals; "
    "signals._NOTICE_TIMEOUT = 60.0; launch.echoserver()"
)

SLOW_TO_IMPORT = """
import pathlib, sys, time
from echoserver import Handler

if any("forkserver" in word for word in sys.argv) or "echoserver.cli" not in sys.modules:
    pathlib.Path({mark!r}).touch()
    time.sleep(60)

class Slow(Handler):
    def receive(self, data):
        return data
"""


@pytest.mark.ci
@pytest.mark.parametrize("processes", [None, 1])
def test_a_server_told_to_leave_while_it_starts_has_not_failed(
    processes: int | None, tmp_path: Path
) -> None:
    plugin, mark, log = tmp_path / "plugin.py", tmp_path / "mark", tmp_path / "log"
    plugin.write_text(SLOW_TO_IMPORT.format(mark=str(mark)))
    words = ["-b", "process", "--port", "0", "--handler", f"{plugin}:Slow"]
    words += ["--workers", str(processes)] if processes else []
    with (
        log.open("wb") as stderr,
        Child([sys.executable, "-c", PATIENT, *words], stderr=stderr) as process,
    ):
        assert wire.eventually(mark.exists)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            wire.eventually(lambda: process.poll() is not None, 0.5)
    said = log.read_text()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert '"stopped"' in said
    for word in ("worker_failed", "Errno", "cannot load", "ended_by_force"):
        assert word not in said
