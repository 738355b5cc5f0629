"""What was measured is saved, whatever becomes of the run, of its table, or of who reads it."""

import csv
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import psutil
import pytest

import echoserver
from clients.address import format_address
from clients.workload import Workload
from loadtest.cli import command as echoload
from loadtest.cli.actions.measurement import SAVE_FORMATS, take_output_files
from loadtest.load.round import Engine, RoundInterrupt, measure
from loadtest.machine import pinning
from tests.support import inspection, wire
from tests.support.launching import Child, command, free_port, run

SHORT = ("-q", "-c", "2", "-n", "20", "--engine", "epoll")


@pytest.fixture(scope="module")
def spawned() -> Iterator[echoserver.SpawnedServer]:
    """A server that all tests here ask, and none ends."""
    with echoserver.spawn(backend="selector") as server:
        yield server


@pytest.fixture
def server(spawned: echoserver.SpawnedServer) -> str:
    """Its address, as it is typed."""
    return format_address(*spawned.address)


# -- interrupted ---------------------------------------------------------------------------------


def interrupted(
    words: list[str], server: echoserver.SpawnedServer, number: int = signal.SIGINT
) -> tuple[str, str]:
    """Run `echoload`, send its group a signal once the server is busy; return what it wrote."""
    assert wire.eventually(lambda: not inspection.peers_of(server.pid)), "those of the test before"
    process = subprocess.Popen(
        [command("echoload"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # One connection is there before, to look whether the server answers right.
    assert wire.eventually(lambda: len(inspection.peers_of(server.pid)) > 1, 30)
    idle = inspection.cpu_seconds(server.pid)
    assert wire.eventually(lambda: inspection.cpu_seconds(server.pid) - idle > 0.1, 30)
    os.killpg(process.pid, number)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, out + error
    assert "Traceback" not in error
    assert wire.eventually(lambda: not inspection.session(process.pid))
    return out, error


@pytest.mark.parametrize(
    ("engine", "number"),
    [
        ("threads", signal.SIGTERM),
        ("epoll", signal.SIGINT),
        pytest.param("threads", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("epoll", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_interrupted_is_shown_and_saved_so_far(
    spawned: echoserver.SpawnedServer,
    server: str,
    engine: str,
    number: signal.Signals,
    tmp_path: Path,
) -> None:
    files = {form: tmp_path / f"out.{form}" for form in ("json", "csv", "markdown", "html", "hgrm")}
    words = [word for form, file in files.items() for word in (f"--{form}", str(file))]
    rate = ["-R", "1k", "--timeout", "60s"] if engine == "threads" else []
    out, error = interrupted(
        ["run", server, "-q", "-c", "4", "-d", "50s", "--engine", engine, *rate, *words],
        spawned,
        number,
    )
    document = json.loads(files["json"].read_text())
    assert document["interrupted"] is True
    (found,) = document["results"]
    assert found["verified"] > 10
    assert (found["errors"], found["connections_served"]) == ({}, 4)
    seconds = found["verified"] / found["throughput"]["median"]
    assert 0 < seconds < 40
    # Only what was due until then can have been dropped, and not what was due in all 50 s.
    assert found["dropped"] + found["verified"] < 1000 * (seconds + 1) or not rate
    assert "messages/s" in out
    assert "interrupted" in error
    for form in ("markdown", "html"):
        assert "INTERRUPTED: after" in files[form].read_text()
    assert "INTERRUPTED: after" in out
    rows = files["csv"].read_text().splitlines()
    assert [row["interrupted"] for row in csv.DictReader(rows)] == ["True"]
    assert "Interrupted" in files["hgrm"].read_text()


@pytest.mark.ci
def test_an_interrupted_round_raises_and_carries_what_was_measured(
    spawned: echoserver.SpawnedServer,
) -> None:
    """So the pilot of a comparison, or a grade's leaderboard, does not go on as if nothing was."""
    idle = inspection.cpu_seconds(spawned.pid)

    def press_ctrl_c() -> None:
        if wire.eventually(lambda: inspection.cpu_seconds(spawned.pid) - idle > 0.1, 30):
            os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press_ctrl_c)
    pressing.start()
    workload = Workload(*spawned.address, connections=2, duration=50.0)
    with pytest.raises(KeyboardInterrupt) as caught:
        measure(workload, pinning.choose("off"), engine=Engine("epoll"))
    pressing.join()
    assert isinstance(caught.value, RoundInterrupt)
    assert caught.value.round.load.verified > 10
    assert 0 < caught.value.round.load.seconds < 40


@pytest.mark.ci
def test_the_only_round_of_a_comparison_counts_as_far_as_it_came(
    spawned: echoserver.SpawnedServer, server: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    words = ["compare", "-q", "-c", "2", "-d", "50s", "--rounds", "2", "--json", str(file)]
    out, _ = interrupted([*words, "--engine", "epoll", "--pin", "off", "-t", server], spawned)
    document = json.loads(file.read_text())
    assert document["results"][0]["verified"] > 10
    assert "INTERRUPTED: after 0 of 2 rounds" in out
    assert f"The only round of {server} was cut short" in out


def test_find_max_shows_and_saves_its_steps_so_far(server: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    words = ["find-max", server, "-c", "2", "-d", "300ms", "--warmup", "0", "--slo", "p50<60s"]
    process = subprocess.Popen(
        [command("echoload"), *words, "--json", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    # A rate that a crowded machine spoiled is tried again, and said not to hold: the next line is
    # waited for. Where all are spoiled the command ends by itself, and the loop with it.
    for line in process.stderr:
        if "does not hold" not in line:
            break
    else:
        process.communicate(timeout=30)
        pytest.skip("other programs have this machine: the client was late at the lowest rate")
    assert "holds" in line
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    found = json.loads(file.read_text())["find_max"]
    assert found["interrupted"] is True
    assert found["rate"] == max(step["rate"] for step in found["steps"] if step["holds"])
    assert "≥ " in out
    assert "Traceback" not in error


def test_ctrl_c_reaches_no_client_process_that_is_still_starting(
    server: str, tmp_path: Path
) -> None:
    """It is sent to the whole group; the client's interpreter had no handler yet, and told it all.

    Here, that interpreter sends it itself, before it has imported anything of ours.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'loadtest.load.worker' in sys.orig_argv:\n"
        "    os.killpg(0, signal.SIGINT)\n"
    )
    process = subprocess.Popen(
        [command("echoload"), "run", server, *SHORT],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert error == "interrupted: nothing was measured\n"


@pytest.mark.ci
def test_hold_shows_and_saves_the_servers_so_far(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    process = subprocess.Popen(
        [
            *(command("echoload"), "hold", "--backends", "selector,thread,asyncio", "-c", "10"),
            *("--json", str(file)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("thread"):
        assert line
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    document = json.loads(file.read_text())
    assert document["interrupted"] is True
    assert [one["target"] for one in document["held"]] == ["selector"]
    assert "10 of 10" in out


@pytest.mark.ci
def test_hold_goes_on_where_one_server_does_not_start(tmp_path: Path) -> None:
    file, failing = tmp_path / "out.json", tmp_path / "failing.py"
    failing.write_text(
        "import echoserver\n"
        "class Failing(echoserver.Backend):\n"
        "    def serve(self, listener, service):\n"
        "        raise echoserver.BootError('no boot today')\n"
    )
    words = ["hold", "--backends", f"{failing}:Failing,selector", "-c", "5", "--json", str(file)]
    result = run("echoload", *words)
    assert result.returncode == 1
    assert "Failing was left out: " in result.stderr
    assert [one["target"] for one in json.loads(file.read_text())["held"]] == ["selector"]


@pytest.mark.ci
def test_an_interrupted_calibration_shows_what_it_found_and_keeps_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [command("echoload"), "calibrate", "--rounds", "50", "--pin", "off"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    seen: set[int] = set()

    def two_clients() -> bool:
        """Tell whether the second client is at work: so the first has a round to show."""
        for one in inspection.tree(process.pid)[1:]:
            with suppress(psutil.Error):
                words = one.cmdline()
                if any("loadtest.load.worker" in word or "c-client" in word for word in words):
                    seen.add(one.pid)
        return len(seen) > 1

    assert wire.eventually(two_clients, 30)
    os.killpg(process.pid, signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "messages/s" in out or "against" in out
    assert "nothing was kept" in error
    assert not list(tmp_path.rglob("*.json"))


# -- files first, then the table -----------------------------------------------------------------


def shell(script: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script of bash, in which ``"$@"`` is an `echoload` with `words`."""
    return subprocess.run(
        ["bash", "-c", script, "bash", command("echoload"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


@pytest.mark.ci
def test_a_reader_who_has_seen_enough_costs_no_file(server: str, tmp_path: Path) -> None:
    """And nothing is said of it; the exit code is that of other Unix tools, or a worse verdict."""
    file = tmp_path / "out.json"
    words = ["run", server, *SHORT, "--json", str(file)]
    closed = shell('"$@" | true; echo "exit ${PIPESTATUS[0]}"', *words)
    assert (closed.stdout, closed.stderr) == ("exit 141\n", "")
    assert json.loads(file.read_text())["results"][0]["verified"] == 20
    missed = shell('"$@" --slo "p50>1h" | true; echo "exit ${PIPESTATUS[0]}"', *words)
    assert missed.stdout == "exit 3\n"
    assert "which is not > 3600 s" in missed.stderr


def test_a_full_disk_under_the_table_costs_no_file(server: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    full = shell('"$@" > /dev/full', "run", server, *SHORT, "--json", str(file))
    assert full.returncode == 1
    assert full.stderr == "echoload: cannot write the table: No space left on device\n"
    assert json.loads(file.read_text())["results"][0]["verified"] == 20


def test_one_file_that_cannot_be_written_costs_no_other(server: str, tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    words = ["--json", "/dev/full", "--csv", str(file)]
    result = run("echoload", "run", server, *SHORT, *words)
    assert result.returncode == 1
    assert "--json: cannot write /dev/full: No space left on device" in result.stderr
    assert "messages/s" in result.stdout
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.ci
def test_a_terminal_that_is_not_utf_8_sees_question_marks(server: str, tmp_path: Path) -> None:
    file = tmp_path / "out.md"
    words = ["run", server, *SHORT, "--markdown", str(file)]
    result = run("echoload", *words, env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert "?s/message" in result.stdout
    assert "µs/message" in file.read_text()


@pytest.mark.ci
def test_a_label_that_is_not_text_is_replaced_in_files(server: str, tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    words: list[Any] = [
        *(command("echoload"), "compare", "-q", "-c", "2", "-d", "100ms", "--warmup", "0"),
        *("--rounds", "1", "--engine", "epoll", "--html", str(file), "-t", server),
        *("--sweep", "size=64", "--", b"a\xff=sleep", "5{port}"),
    ]
    result = subprocess.run(words, capture_output=True, check=False, timeout=60)
    assert b"Traceback" not in result.stderr
    assert server in file.read_text()


# -- where to ------------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/proc/self/fd/1"])
def test_json_goes_to_standard_output_and_the_table_to_standard_error(
    server: str, name: str, tmp_path: Path
) -> None:
    result = run("echoload", "run", server, *SHORT, "--json", name, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["results"][0]["verified"] == 20
    assert "messages/s" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
def test_a_file_that_standard_output_is_redirected_to_is_not_replaced(
    server: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.txt"
    words = ["run", server, *SHORT, "--csv", "/dev/stdout"]
    shell(
        '{ echo before; "$@" 2> /dev/null; echo after; } > "$FILE"',
        *words,
        env={**os.environ, "FILE": str(file)},
    )
    lines = file.read_text().splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("before", "after", 4)


@pytest.mark.ci
def test_what_a_shell_passes_for_a_process(server: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    os.mkfifo(copy)
    words = ["run", server, *SHORT]
    script = '"$@" --json >(cat > "$COPY"); echo "exit $?" >&2'
    with Child(["cat", str(copy)], stdout=subprocess.PIPE) as reader:
        result = shell(script, *words, env={**os.environ, "COPY": str(copy)})
        document = json.loads(reader.communicate()[0])
    assert result.stderr == "exit 0\n"
    assert document["results"][0]["verified"] == 20


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"html": "/no/such/folder/x.html"}, "--html: cannot write /no/such/folder/x.html: its"),
        ({"html": "/"}, "--html: cannot write /: it is a folder"),
        ({"html": "/sys/x.html"}, "--html: cannot write /sys/x.html: its folder"),
        ({"json": "/dev/fd/99"}, "--json: cannot write /dev/fd/99: Bad file descriptor"),
        ({"json": "-", "csv": "/dev/stdout"}, "--json and --csv both name /dev/stdout"),
        ({"json": "x", "csv": "./x"}, "--json and --csv both name ./x"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_written_is_refused_before_the_run(files: dict[str, str], says: str) -> None:
    options = {f"{form}_file": files.get(form) for form in SAVE_FORMATS}
    with click.Context(echoload), pytest.raises(click.UsageError) as refused:
        take_output_files(options)
    assert refused.value.message.startswith(says)


@pytest.mark.parametrize(
    "words",
    [
        ["run", ":1", "--json", "/no/such/x"],
        ["find-max", ":1", "--json", "/no/such/x"],
        ["hold", "--json", "/no/such/x"],
        ["check", ":1", "--output", "/no/such/x"],
    ],
    ids=lambda value: value[0],
)
def test_every_command_refuses_it(words: list[str]) -> None:
    result = run("echoload", *words, stdin=subprocess.DEVNULL)
    assert result.returncode == 2, result.stderr
    assert ": cannot write /" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_only_one_grade_can_go_to_the_terminal() -> None:
    words = ["--output", "-", "--format", "json", "--format", "tap"]
    result = run("echoload", "check", ":1", *words)
    assert result.returncode == 2
    assert "only one of --format json and tap" in result.stderr


@pytest.mark.ci
def test_find_max_to_standard_output(server: str) -> None:
    words = ["-c", "2", "-d", "100ms", "--warmup", "0", "--precision", "10", "--slo", "p50<1us"]
    result = run("echoload", "find-max", server, *words, "-q", "--json", "-")
    assert result.returncode in {3, 5}, result.stderr
    assert json.loads(result.stdout)["find_max"]["rate"] is None
    assert "not even the lowest rate" in result.stderr


@pytest.mark.ci
def test_report_to_standard_output_and_from_standard_input(server: str, tmp_path: Path) -> None:
    saved = run("echoload", "run", server, *SHORT, "--json", "-").stdout
    again = run("echoload", "report", "-", "--html", "-", input=saved)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("<!doctype html>")
    assert server in again.stderr
    closed = shell('"$@" | true; echo "exit ${PIPESTATUS[0]}"', "report", "/dev/stdin", input=saved)
    assert (closed.stdout, closed.stderr) == ("exit 141\n", "")


# -- the grader ----------------------------------------------------------------------------------


def test_grades_go_to_standard_output_and_to_a_pipe_once(server: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    os.mkfifo(copy)
    words = ["--format", "json", "--output", str(copy), "--format", "junit", "--output", "-"]
    with Child(["cat", str(copy)], stdout=subprocess.PIPE) as reader:
        result = run("echoload", "check", "--only", "L*", server, *words)
        report = json.loads(reader.communicate()[0])
    assert report["complete"] is True
    assert result.stdout.startswith("<?xml")
    assert "echoload check" in result.stdout


@pytest.mark.ci
def test_a_reader_who_has_seen_enough_costs_no_grade(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    words = ["check", "--only", "L1", "--format", "json", "--output", str(file)]
    script = '"$@" | true; echo "exit ${PIPESTATUS[0]}"'
    result = shell(script, *words, "--", command("echoserver"), "--port", "{port}")
    assert result.stdout == "exit 141\n", result.stderr
    report = json.loads(file.read_text())
    assert (report["complete"], report["checks"][0]["status"]) == (True, "passed")
    refused = shell(script, *words, f"127.0.0.1:{free_port()}")
    assert refused.stdout == "exit 1\n", refused.stderr
    full = shell('"$@" > /dev/full', *words, f"127.0.0.1:{free_port()}")
    assert full.returncode == 2
    assert "cannot write the report: No space left on device" in full.stderr
