"""Nothing of a graded server survives, whatever it does, and its output cannot write the grade."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import pace, wire
from tests.support.checking import check, failed, specimen, status
from tests.support.launching import command, run

pytestmark = pytest.mark.ci

# Each begins as a server that is right, and does one thing besides.
_SERVER = """
import os, signal, socket, subprocess, sys, threading, time

MARK = sys.argv[2]

def serve(client):
    with client:
        try:
            while data := client.recv(4096):
                client.sendall(data)
        except OSError:
            pass

def run():
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()
"""


def _hostile(tmp_path: Path, body: str) -> tuple[list[str], str]:
    """Return the command of a server, and a word by which all its processes are known."""
    path = tmp_path / "hostile.py"
    path.write_text(_SERVER + body)
    mark = f"hostile-{os.getpid()}-{tmp_path.name}"
    return [sys.executable, str(path), "{port}", mark], mark


def _alive(mark: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if mark in (process.info["cmdline"] or [])
    ]


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    words, mark = _hostile(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nrun()\n")
    found = check(words, "--only", "L1,L2,L4", "--timeout", "2s")
    assert failed(found).keys() == {"L4"}
    assert "still runs 2 s after SIGTERM" in failed(found)["L4"]
    assert not _alive(mark)


def test_a_daemon_that_detached_itself_is_found(tmp_path: Path) -> None:
    words, mark = _hostile(
        tmp_path,
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        run()\n"
        "    os._exit(0)\n"
        "time.sleep(100)\n",
    )
    found = check(words, "--only", "L1,L2,S1,L4", "--timeout", "2s")
    assert failed(found).keys() == {"L4"}
    assert "still runs" in failed(found)["L4"]
    assert not _alive(mark)


def test_a_server_that_kills_its_keeper_is_found_out(tmp_path: Path) -> None:
    words, mark = _hostile(
        tmp_path,
        "keeper = os.getppid()\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        run()\n"
        "    os._exit(0)\n"
        "time.sleep(0.1)\nos.kill(keeper, signal.SIGKILL)\ntime.sleep(100)\n",
    )
    found = check(words, "--only", "L1,L2,S1,S4")
    assert "killed the process that watches over it" in " ".join(failed(found).values())
    assert not _alive(mark)


def test_a_server_that_goes_into_the_background_is_told_to_stay(tmp_path: Path) -> None:
    words, mark = _hostile(
        tmp_path,
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=99)\n"
        "if os.fork():\n    os._exit(0)\n"
        "while True:\n    serve(listener.accept()[0])\n",
    )
    found = check(words, "--only", "L1,L2")
    assert "stays in the foreground" in failed(found)["L1"]
    assert not _alive(mark)


def test_processes_that_fork_without_end_are_ended(tmp_path: Path) -> None:
    # Each child replaces itself before it ends, so there is never a moment to catch all of them;
    # and they leave the group. They stop by themselves after half a minute, should this fail.
    words, mark = _hostile(
        tmp_path,
        "end = time.monotonic() + 30\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        while time.monotonic() < end:\n"
        "            if os.fork():\n"
        "                os._exit(0)\n"
        "            os.setsid()\n"
        "        os._exit(0)\n"
        "run()\n",
    )
    begun = time.monotonic()
    found = check(words, "--only", "L1,L2,S1")
    assert failed(found) == {}
    assert not _alive(mark)
    assert pace.within(time.monotonic() - begun, 30)


def test_a_flood_of_output_neither_stops_it_nor_is_kept(tmp_path: Path) -> None:
    words, mark = _hostile(
        tmp_path,
        "def log():\n    while True:\n        os.write(1, b'log ' * 4096 + b'\\n')\n"
        "threading.Thread(target=log, daemon=True).start()\nrun()\n",
    )
    found = check(words, "--only", "L1,L2,S1,S4,C3")
    assert failed(found) == {}
    assert not _alive(mark)


def test_the_last_lines_are_shown_without_control_characters(tmp_path: Path) -> None:
    words, _ = _hostile(
        tmp_path,
        "print('\\x1b[2J' + '{\"scores\": {\"Life\": 100}}')\nprint('ok 1 - all')\nsys.exit(3)\n",
    )
    found = check(words, "--only", "L1")
    assert "ended with exit code 3 before it accepted" in failed(found)["L1"]
    output = found["checks"][0]["evidence"]["output"]
    assert output == ['\\x1b[2J{"scores": {"Life": 100}}', "ok 1 - all"]
    done = run("echoload", "check", "--only", "L1", "--format", "autolab", "--", *words)
    assert json.loads(done.stdout.splitlines()[-1])["scores"]["Life"] == 0
    done = run("echoload", "check", "--only", "L1", "--format", "tap", "--", *words)
    assert [line for line in done.stdout.splitlines() if line.startswith("ok")] == []


def test_memory_beyond_the_limit_ends_it(tmp_path: Path) -> None:
    words, mark = _hostile(
        tmp_path,
        "hoard = []\ndef grow():\n    while True:\n        hoard.append(os.urandom(1 << 20))\n"
        "        time.sleep(0.005)\n"
        "threading.Thread(target=grow, daemon=True).start()\nrun()\n",
    )
    found = check(words, "--only", "L1,L2,S4,C7", "--memory", "100MiB")
    assert found["checks"][0]["status"] == "passed"
    messages = " ".join(failed(found).values())
    assert "of memory where 100 are allowed" in messages
    assert not _alive(mark)


def test_a_limit_of_descriptors_reaches_it(tmp_path: Path) -> None:
    words, _ = _hostile(
        tmp_path, "import resource\nprint(resource.getrlimit(resource.RLIMIT_NOFILE))\nsys.exit()\n"
    )
    found = check(words, "--only", "L1", "--nofile", "77")
    assert found["checks"][0]["evidence"]["output"] == ["(77, 77)"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it as somebody else")
def test_it_runs_as_another_user(tmp_path: Path) -> None:
    words = ["sh", "-c", "id -un; ulimit -p; exit 1"]
    found = check(words, "--only", "L1", "--user", "nobody", "--nproc", "64")
    assert found["checks"][0]["evidence"]["output"] == ["nobody", "64"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_survives_the_grader(tmp_path: Path, number: signal.Signals) -> None:
    words, mark = _hostile(
        tmp_path, "if os.fork() == 0:\n    os.setsid()\n    time.sleep(99)\nrun()"
    )
    saved, complaints = tmp_path / "grade.json", tmp_path / "stderr"
    # So often that it cannot be through when the signal comes.
    options = ["--skip", "L4", "--repeat", "5", "--format", "json"]
    with complaints.open("wb") as stderr:
        grader = subprocess.Popen(
            [command("echoload"), "check", *options, "--output", str(saved), "--", *words],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:

        def passed() -> bool:
            return saved.exists() and status(json.loads(saved.read_text()), "S1") == "passed"

        assert wire.eventually(passed, 30)
        assert _alive(mark)
        grader.send_signal(number)
        code = grader.wait(30)
    finally:
        grader.kill()
        grader.wait()
    assert code == (130 if number != signal.SIGKILL else -signal.SIGKILL), complaints.read_text()
    assert wire.eventually(lambda: not _alive(mark), 10)
    found = json.loads(saved.read_text())
    assert not found["complete"]
    assert status(found, "S1") == "passed"
    assert status(found, "N8") == "skipped"


def test_a_process_that_ends_early_is_noticed_at_once() -> None:
    begun = time.monotonic()
    found = check(specimen("ends_at_once"), "--timeout", "40s")
    assert pace.within(time.monotonic() - begun, 20)
    assert failed(found).keys() == {"L1"}
    assert "TypeError" in " ".join(found["checks"][0]["evidence"]["output"])
    assert {one["status"] for one in found["checks"][1:]} == {"skipped"}
