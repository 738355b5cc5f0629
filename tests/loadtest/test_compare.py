"""Comparing servers of every kind, thresholds, and what is shown of it."""

import csv
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from hdrh.histogram import HdrHistogram

import echoserver
from clients.address import format_address
from loadtest.machine import doctor
from loadtest.peers import PEERS
from loadtest.results.objectives import parse_objectives
from loadtest.results.result import Result
from loadtest.results.schema import Row
from loadtest.results.verdicts import check_objectives, check_regressions
from loadtest.servers.specs import describe_target
from tests.support import inspection, preforked, wire
from tests.support.launching import Terminal, command, free_port, run

STUDENT = """
import os, socket, sys, threading

def serve(sock):
    while data := sock.recv(1024):
        sock.sendall(data)
    sock.close()

port = int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ["PORT"])
listener = socket.create_server(("127.0.0.1", port), backlog=100)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

# Answers two clients, of which one asks whether it accepts, and one whether it answers right.
DYING = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
kept = []
while True:
    sock = listener.accept()[0]
    kept.append(sock)
    while len(kept) < 3 and (data := sock.recv(65536)):
        sock.sendall(data)
    if len(kept) < 3: sock.close()
"""

QUICK = ("--rounds", "1", "-d", "200ms", "--warmup", "0", "-c", "4", "--engine", "threads")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A server that somebody has written."""
    file = tmp_path / "student.py"
    file.write_text(STUDENT)
    return file


def compared(*words: str, file: Path, code: int = 0) -> dict[str, Any]:
    result = run("echoload", "compare", *QUICK, "--json", str(file), *words)
    assert result.returncode == code, result.stdout + result.stderr
    found = json.loads(file.read_text())
    assert isinstance(found, dict)
    return found


# -- targets -------------------------------------------------------------------------------------


@pytest.mark.ci
def test_servers_of_every_kind_side_by_side(
    student: Path, echo_server: echoserver.SpawnedServer, tmp_path: Path
) -> None:
    where = format_address(*echo_server.address)
    found = compared(
        *("--backends", "thread", "-t", f"running={where}", "-t", "socketserver-threading"),
        *("-t", "two=thread,workers=2", "-t", f"mine={sys.executable} {student} {{port}}"),
        *("-t", "plugin=tests/broken/backends.py:BrokenThreads"),
        file=tmp_path / "out.json",
    )
    rows = {row["target"]: row for row in found["results"]}
    assert list(rows) == ["thread", "running", "socketserver-threading", "two", "mine", "plugin"]
    assert all(row["verified"] and not row["errors"] for row in rows.values())
    assert rows["two"]["server"]["processes"] == 3
    assert rows["running"]["server"]["cpu_us_per_message"] > 1
    assert rows["mine"]["server"]["threads"] == 5


@pytest.mark.ci
@pytest.mark.parametrize("words", [["{port}"], []], ids=["port", "environment"])
def test_a_command(student: Path, words: list[str], tmp_path: Path) -> None:
    found = compared(
        *("--", f"student={sys.executable}", str(student), *words), file=tmp_path / "out.json"
    )
    assert [row["target"] for row in found["results"]] == ["student"]
    assert found["results"][0]["verified"] > 0


@pytest.mark.ci
def test_a_command_that_does_not_serve(tmp_path: Path) -> None:
    result = run(
        *(
            "echoload",
            "compare",
            *QUICK,
            "--",
            sys.executable,
            "-c",
            "print('oh no'); 1/0",
            "{port}",
        )
    )
    assert result.returncode == 1
    assert "does not accept" in result.stderr
    assert "ZeroDivisionError" in result.stderr
    missing = run("echoload", "compare", *QUICK, "--", "/no/such/program", "{port}")
    assert missing.returncode == 1
    assert "cannot start /no/such/program" in missing.stderr


# Answers so many clients right, over all its lives, as its second argument says, and then damages.
TIRING = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
count = open(sys.argv[2], "a+")
while True:
    sock = listener.accept()[0]
    while data := sock.recv(65536):
        count.write("x"); count.flush(); count.seek(0)
        tired = len(count.read()) > int(sys.argv[3])
        sock.sendall(b"!" if tired else data)
    sock.close()
"""


def test_who_cannot_be_measured_is_named_and_left_out_before_the_first_round(
    student: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    wrong = tmp_path / "wrong.py"
    wrong.write_text(STUDENT.replace("sendall(data)", "sendall(data.upper())"))
    result = run(
        *("echoload", "compare", *QUICK, "--json", str(file), "--reference", "shouts"),
        *("-t", f"my server={sys.executable} {student} {{port}}"),
        *("-t", f"shouts={sys.executable} {wrong} {{port}}", "--", "no such=/no/such/program"),
    )
    assert result.returncode == 1, "what was asked for was not all done"
    assert "Traceback" not in result.stderr
    shouts, missing = [line for line in result.stderr.splitlines() if line.startswith("echoload: ")]
    assert "shouts was left out: 127.0.0.1:" in shouts
    assert f"to see why: echoload check -- {sys.executable} {wrong} '{{port}}'" in shouts
    assert "no such was left out: cannot start /no/such/program" in missing
    found = json.loads(file.read_text())
    assert [row["target"] for row in found["results"]] == ["my server"]
    assert any(note.startswith("shouts was left out: ") for note in found["notes"])
    assert "shouts" in result.stdout, "and under the table"
    assert result.stderr.index("trying no such") < result.stderr.index("round 1/")


@pytest.mark.ci
def test_who_fails_later_is_named_and_the_others_go_on(student: Path, tmp_path: Path) -> None:
    file, script = tmp_path / "out.json", tmp_path / "tiring.py"
    script.write_text(TIRING)
    result = run(
        *("echoload", "compare", *QUICK, "--rounds", "4", "--json", str(file), "-c", "1"),
        # One message shows that it answers, before each round; they are four pieces at most.
        *("-d", "50ms", "--think", "1s", "-t", f"fine={sys.executable} {student} {{port}}"),
        *("-t", f"tires={sys.executable} {script} {{port}} {tmp_path}/count 5"),
    )
    assert result.returncode == 1, result.stdout + result.stderr
    rows = {row["target"]: row for row in json.loads(file.read_text())["results"]}
    assert len(rows["fine"]["throughput"]["rounds"]) == 4
    rounds = len(rows["tires"]["throughput"]["rounds"])
    assert 0 < rounds < 4
    assert f"tires was left out after {rounds} round" in result.stderr
    assert "does not answer" in rows["tires"]["failed"]
    assert "failed" not in rows["fine"]
    assert "4 interleaved rounds" in result.stdout, "which is true of the others"


@pytest.mark.ci
def test_a_comparison_that_ended_early_does_not_claim_all_its_rounds(tmp_path: Path) -> None:
    """Its client could not go on: no server is to blame, so none is left out."""
    file = tmp_path / "out.json"
    process = subprocess.Popen(
        [
            *(command("echoload"), "compare", *QUICK, "--rounds", "50", "--backends", "selector"),
            *("--json", str(file)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("round 1/50"):
        assert line

    def killed() -> bool:
        for one in inspection.tree(process.pid)[1:]:
            with suppress(psutil.Error):
                if "loadtest.load.worker" in one.cmdline():
                    one.kill()
                    return True
        return False

    assert wire.eventually(killed, 30)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the load client ended with exit code -9" in error
    assert re.search(r"after [12] of 50 interleaved rounds", out)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("my server=python3 s.py {port}", "my server"),
        ("python3 s.py --x=1 {port}", None),
        ("python3 s.py x=1 {port}", None),
        ("FOO=python3 s.py {port}", "FOO"),
        ("fast 2=thread,workers=2", "fast 2"),
        ("thread", None),
    ],
)
def test_labels(text: str, label: str | None) -> None:
    assert describe_target(text).label == label


def test_a_command_dies_with_who_started_it(student: Path) -> None:
    process = subprocess.Popen(
        [
            *(command("echoload"), "compare", "-d", "30s", "-c", "2", "--engine", "threads"),
            *("--", sys.executable, str(student), "{port}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert wire.eventually(lambda: len(inspection.tree(process.pid)) >= 3)
    everyone = inspection.tree(process.pid)[1:]
    process.kill()
    process.wait()
    assert wire.eventually(lambda: not any(one.is_running() for one in everyone))


@pytest.mark.ci
def test_a_command_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither itself nor what it has started."""
    script = tmp_path / "forks.sh"
    script.write_text(
        f'#!/bin/sh\nsleep 300.25 &\nexec {sys.executable} "$(dirname "$0")/s.py" $1\n'
    )
    (tmp_path / "s.py").write_text(STUDENT)
    compared("--", "sh", str(script), "{port}", file=tmp_path / "out.json")
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 300.25" not in listed.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-t", "thread,workers"], "'workers' is not SETTING=VALUE"),
        (["-t", "thread,wrokers=2"], "did you mean 'workers'"),
        (["-t", "thraed"], "did you mean 'thread'"),
        (["-t", "c-epoll,workers=2"], "only a backend has settings"),
        (["--backends", "thread", "-t", "thread"], "give one a label"),
        (["--reference", "gevnet"], "--reference gevnet is none of the targets"),
        (["--python", "/no/python"], "/no/python is not a Python"),
        (["--sweep", "colour=1,2"], "connections=10,100,1000"),
        (["--sweep", "connections=0"], "more than 0"),
        (["--sweep", "pipeline=99999999999"], "1000 at most"),
        (["--pin", "0:banana"], "SERVERCPUS:CLIENTCPUS"),
        (["--pin", "0:9999"], "this process may use"),
        (["--slo", "p98<1ms"], "p95, p99, p999"),
        (["--slo", "p99<fast"], "duration"),
        (["--baseline", "/no/such.json"], "cannot read /no/such.json"),
        (["--max-regression", "much"], "10%"),
        (["-R", "0"], "more than 0"),
        (["-R", "fast"], "1000:20000"),
        (["--think", "1ms", "-R", "5"], "contradict"),
        (["--ca", "x"], "add --tls"),
        (["--tls", "--ca", "/no/ca"], "cannot read the TLS file /no/ca"),
        (["--size", "uniform:9:1"], "smallest first"),
        (["--workers", "no"], "--workers must be auto"),
        (["--html", "/no/where/x.html"], "--html: cannot write /no/where/x.html"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_are_one_sentence(words: list[str], says: str) -> None:
    result = preforked.run("echoload", "compare", *words)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


# -- a sweep, a reference, a ranking -------------------------------------------------------------


@pytest.mark.ci
def test_a_sweep(tmp_path: Path) -> None:
    found = compared(
        *("--backends", "thread,selector", "--sweep", "connections=2,5"), file=tmp_path / "out.json"
    )
    swept = [(row["target"], row["connections"], row["sweep"]) for row in found["results"]]
    assert swept == [
        ("thread", 2, {"connections": 2}),
        ("selector", 2, {"connections": 2}),
        ("thread", 5, {"connections": 5}),
        ("selector", 5, {"connections": 5}),
    ]
    assert [one["sweep"] for one in found["comparison"]] == [{"connections": 2}, {"connections": 5}]
    for one in found["results"]:  # whose limit each point shows, and how sure it is
        assert one["client_limited_rounds"] == int(one["client_limited"])
        assert one["throughput"]["low"] <= one["throughput"]["median"] <= one["throughput"]["high"]


@pytest.mark.slow
@pytest.mark.ci
def test_rounds_suffice_by_default_and_not_when_told_otherwise(tmp_path: Path) -> None:
    few = run("echoload", "compare", "--backends", "thread,selector", *QUICK)
    assert "No ranking: 1 rounds" in few.stdout
    assert "--rounds 4" in few.stdout
    file = tmp_path / "out.json"
    enough = run(
        *("echoload", "compare", "--backends", "thread,selector", "-d", "250ms", "-c", "20"),
        *("--warmup", "0"),
        *("--engine", "epoll", "--reference", "selector", "--json", str(file)),
    )
    assert enough.returncode == 0, enough.stderr
    (comparison,) = json.loads(file.read_text())["comparison"]
    assert comparison["rounds"] == 5 >= comparison["least_rounds"] == 4
    cpu = comparison["figures"]["cpu_us_per_message"]
    assert set(cpu["ranks"]) == {"thread", "selector"}
    assert cpu["ratios"]["selector"]["median"] == 1
    assert cpu["ratios"]["thread"]["low"] <= cpu["ratios"]["thread"]["median"]
    assert len(cpu["ratios"]["thread"]["rounds"]) == 5


@pytest.mark.slow
def test_the_same_is_not_found_to_differ(tmp_path: Path) -> None:
    """Eight real comparisons of a server with itself: four claims by chance are 1 in 2,700."""
    claims = 0
    for seed in range(8):
        file = tmp_path / f"{seed}.json"
        result = run(
            *("echoload", "compare", "-t", "one=selector", "-t", "two=selector", "--rounds", "5"),
            *("-d", "200ms", "--warmup", "100ms", "-c", "50", "--engine", "epoll"),
            *("--seed", str(seed), "--json", str(file), "-q"),
        )
        assert result.returncode == 0, result.stderr
        (comparison,) = json.loads(file.read_text())["comparison"]
        (pair,) = comparison["figures"]["cpu_us_per_message"]["pairs"]
        claims += pair["different"]
    assert claims < 4


@pytest.mark.slow
def test_a_handicap_of_15_percent_is_found_at_10_rounds(tmp_path: Path) -> None:
    """The same server, whose handler computes for 15 % of what a message costs besides."""
    plugin = tmp_path / "handicapped.py"
    plugin.write_text(
        "import time\n"
        "from echoserver import Handler\n"
        "from echoserver.backends.selector import SelectorBackend\n"
        "class Late(Handler):\n"
        "    def receive(self, data):\n"
        "        until = time.perf_counter_ns() + NANOSECONDS\n"
        "        while time.perf_counter_ns() < until: pass\n"
        "        return data\n"
        "class Handicapped(SelectorBackend):\n"
        "    def serve(self, listener, service):\n"
        "        service.make_handler = Late\n"
        "        super().serve(listener, service)\n"
    )
    file = tmp_path / "out.json"

    def measure(rounds: str) -> dict[str, Any]:
        result = run(
            *("echoload", "compare", "-t", "selector", "-t", f"handicapped={plugin}:Handicapped"),
            *("--rounds", rounds, "-d", "300ms", "-c", "100", "--engine", "epoll"),
            *("--reference", "selector", "--json", str(file), "-q"),
        )
        assert result.returncode == 0, result.stderr
        (comparison,) = json.loads(file.read_text())["comparison"]
        figure = comparison["figures"]["cpu_us_per_message"]
        assert isinstance(figure, dict)
        return figure

    text = plugin.read_text()
    plugin.write_text(text.replace("NANOSECONDS", "0"))
    measure("4")
    rows = {row["target"]: row for row in json.loads(file.read_text())["results"]}
    # What the clock itself costs is in it already.
    cost = rows["selector"]["server"]["cpu_us_per_message"]
    already = rows["handicapped"]["server"]["cpu_us_per_message"] - cost
    nanoseconds = max(0, int(1000 * (0.15 * cost - already)))
    plugin.write_text(text.replace("NANOSECONDS", str(nanoseconds)))
    figure = measure("10")
    assert 1.05 < figure["ratios"]["handicapped"]["median"] < 1.3
    assert figure["ranks"] == {"selector": 1, "handicapped": 2}


# -- thresholds ----------------------------------------------------------------------------------


def row(**changes: Any) -> Row:
    rounds = changes.pop("rounds", [100.0, 101, 99, 100, 102, 98])
    cpu = changes.pop("cpu", [10.0, 10.1, 9.9, 10, 10.2, 9.8])
    found = {
        **Result("it", None, "echo", 10).as_json(),
        "latency_us": {"p50": 900, "p99": 15_000, "max": 90_000, "mean": 1_000},
        "throughput": {"median": sorted(rounds)[len(rounds) // 2], "rounds": rounds},
        "server": {"cpu_us_per_message": cpu[0], "cpu": {"rounds": cpu}},
        **changes,
    }
    return cast("Row", found)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p99<20ms", True),
        ("p99<15ms", False),
        ("p99<=15ms", True),
        ("p50<1ms, errors=0, throughput>50", True),
        ("throughput>=1k", False),
        ("cpu<12us", True),
        ("cpu<5us", False),
        ("dropped=0,starved=0,mean<2ms", True),
        ("p90<1s", False),  # it has none
    ],
)
def test_objectives(text: str, *, holds: bool) -> None:
    verdict = check_objectives([row()], parse_objectives(text))
    assert (not verdict.violations) is holds
    assert not verdict.doubts
    if not holds:
        assert ", which is not " in verdict.violations[0]


def test_what_does_not_hold_has_its_unit_and_what_holds_is_said() -> None:
    found = [row(), row(target="other", latency_us={"p99": 23_100, "p50": 900})]
    broken = check_objectives(found, parse_objectives("p99<20ms,cpu<=9us,throughput>1k,errors>1"))
    assert broken.violations == (
        "it: cpu 10 µs, which is not <= 9 µs",
        "it: throughput 100 messages/s, which is not > 1,000 messages/s",
        "it: errors 0, which is not > 1",
        "other: p99 23.1 ms, which is not < 20 ms",
        "other: cpu 10 µs, which is not <= 9 µs",
        "other: throughput 100 messages/s, which is not > 1,000 messages/s",
        "other: errors 0, which is not > 1",
    )
    assert not broken.confirmations
    held = check_objectives(found, parse_objectives("p99 < 2s, errors=0, throughput>50"))
    assert held.confirmations == (
        (
            "every objective holds of all 2 targets: p99 23.1 ms of other (< 2 s), errors 0 of it "
            "(= 0), throughput 100 messages/s of it (> 50 messages/s)"
        ),
    )
    one = check_objectives([row()], parse_objectives("p50<1ms"))
    assert one.confirmations == ("every objective holds: p50 900 µs (< 1 ms)",)
    assert check_objectives(found, ()).confirmations == ()


def test_a_baseline_that_holds_says_so() -> None:
    verdict = check_regressions([row(), row(target="new")], [row()], 0.10)
    (said,) = verdict.confirmations
    assert said.startswith("the baseline holds: nothing is worse by more than 10 %; the worst: it:")
    assert said.endswith("not compared: new")


def test_a_rate_that_the_client_limited_is_no_verdict() -> None:
    limited = [row(client_limited=True)]
    assert check_objectives(limited, parse_objectives("throughput>1k")).doubts
    assert check_objectives(limited, parse_objectives("p99<1ms")).violations


@pytest.mark.parametrize(
    ("now", "broken", "unsure"),
    [
        ({}, False, False),
        ({"cpu": [12.0, 12.1, 11.9, 12, 12.2, 11.8]}, True, False),
        ({"cpu": [10.5, 10.4, 10.6, 10.5, 10.3, 10.7]}, False, False),  # less than 10 %
        ({"cpu": [8.0, 12.5, 14, 9, 11.5, 15]}, False, True),  # too noisy to say
        ({"rounds": [80.0, 81, 79, 80, 82, 78]}, True, False),
        ({"rounds": [80.0, 81, 79, 80, 82, 78], "client_limited": True}, False, False),
        ({"rounds": [150.0, 151, 149, 150, 152, 148]}, False, False),  # better
    ],
    ids=str,
)
def test_regressions(now: dict[str, Any], *, broken: bool, unsure: bool) -> None:
    verdict = check_regressions([row(**now)], [row()], 0.10)
    assert (bool(verdict.violations), bool(verdict.doubts)) == (broken, unsure)


@pytest.mark.slow
@pytest.mark.ci
def test_thresholds_decide_the_exit_code(tmp_path: Path) -> None:
    file, base = tmp_path / "out.json", tmp_path / "base.json"
    words = ("--backends", "thread")
    compared(*words, file=base)
    compared(*words, "--slo", "p99<20s,errors=0", file=file)
    met = run("echoload", "compare", *QUICK, *words, "--slo", "p99<20s,errors=0", "-q")
    assert re.match(r"echoload: every objective holds: p99 .*s \(< 20 s\), errors 0", met.stderr)
    result = run("echoload", "compare", *QUICK, *words, "--slo", "p50<1us")
    assert result.returncode == 3
    assert re.search(r"thread: p50 \S+ [mµ]?s, which is not < 1 µs", result.stderr)
    document = json.loads(base.read_text())
    server = document["results"][0]["server"]
    server["cpu"]["rounds"] = [server["cpu"]["median"] / 1000] * 6  # far beyond any noise
    base.write_text(json.dumps(document))
    result = run("echoload", "compare", *QUICK, *words, "--baseline", str(base))
    assert result.returncode == 5, "a single round proves nothing"
    assert "inconclusive: thread: server CPU per message is" in result.stderr
    held = (*words, "--baseline", str(base))
    result = run("echoload", "compare", *QUICK, *held, "--rounds", "5")
    assert result.returncode == 3
    assert "echoload: thread: server CPU per message is" in result.stderr
    result = run("echoload", "compare", *QUICK, *held, "--size", "100")
    assert result.returncode == 2
    assert "another workload: size 64, and not 100" in result.stderr
    silent = run(  # nothing is verified, which comes before all thresholds
        *("echoload", "compare", *QUICK, "--timeout", "1s", "--baseline", str(base)),
        *("-t", f"thread={sys.executable} -c '{DYING}' {{port}}"),
    )
    assert silent.returncode == 4, silent.stderr
    document["results"][0]["target"] = "another"
    base.write_text(json.dumps(document))
    result = run("echoload", "compare", *QUICK, *held)
    assert result.returncode == 2
    assert "none of these targets" in result.stderr


# -- find-max ------------------------------------------------------------------------------------


@pytest.mark.ci
def test_a_test_case_for_each_target_and_objective(student: Path, tmp_path: Path) -> None:
    file, wrong = tmp_path / "out.xml", tmp_path / "wrong.py"
    wrong.write_text(STUDENT.replace("sendall(data)", "sendall(data.upper())"))
    result = run(
        *("echoload", "compare", *QUICK, "--junit", str(file), "--slo", "p50>1h,errors=0"),
        *("-t", f"my own={sys.executable} {student} {{port}}"),
        *("-t", f"wrong={sys.executable} {wrong} {{port}}"),
    )
    assert result.returncode == 1, result.stderr
    suite = ET.fromstring(file.read_text()).find("testsuite")  # noqa: S314 - our own
    assert suite is not None
    found = [
        (case.get("classname"), case.get("name"), *(child.tag for child in case))
        for case in suite.iter("testcase")
    ]
    assert found == [
        ("echoload.my own", "every reply is right"),
        ("echoload.my own", "p50>1h", "failure"),
        ("echoload.my own", "errors=0"),
        ("echoload", "it can be measured", "error"),
    ]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "1")


def test_a_test_case_tells_that_nothing_could_be_measured(tmp_path: Path) -> None:
    file = tmp_path / "out.xml"
    words = ["-q", "-c", "1", "-n", "1", "--engine", "epoll", "--junit", str(file)]
    result = run("echoload", "run", f"127.0.0.1:{free_port()}", *words)
    assert result.returncode == 4
    assert 'failures="2"' in file.read_text()
    assert "the connection was refused" in file.read_text()


@pytest.mark.ci
def test_find_max_finds_where_a_server_no_longer_keeps_up(tmp_path: Path) -> None:
    """One client at a time, 10 ms each: a hundred a second, and no more."""
    file = tmp_path / "out.json"
    with echoserver.spawn(handler="sleep", handler_option={"seconds": "0.01"}) as server:
        result = run(
            *("echoload", "find-max", format_address(*server.address), "-c", "1", "-d", "500ms"),
            *("--slo", "p99<100ms,errors=0", "--precision", "20%", "--json", str(file)),
        )
    found = json.loads(file.read_text())["find_max"]
    # On a crowded machine the client itself is late, and says so.
    assert result.returncode == (5 if found["inconclusive"] else 0), result.stderr
    if found["inconclusive"] and not found["rate"]:
        pytest.skip("other programs have this machine: the client was late at the lowest rate")
    assert (30 if found["inconclusive"] else 60) < found["rate"] < 125
    assert any(step["holds"] for step in found["steps"])
    assert any(
        "p99<100ms" in step["because"] or "dropped" in step["because"] for step in found["steps"]
    )
    assert re.search(r": (≥ )?[\d,]+ messages/s with p99<100ms, errors=0", result.stdout)


def test_find_max_of_nobody() -> None:
    result = run("echoload", "find-max", f"127.0.0.1:{free_port()}", "-c", "2", "-d", "200ms")
    assert result.returncode == 4
    assert "nothing was verified" in result.stderr


@pytest.mark.ci
def test_find_max_where_nothing_holds() -> None:
    with echoserver.spawn(handler="sleep", handler_option={"seconds": "0.05"}) as server:
        result = run(
            *("echoload", "find-max", format_address(*server.address), "-c", "2", "-d", "300ms"),
            *("--slo", "p50<1ms"),
        )
    # On a crowded machine, it might have been the others' fault.
    assert result.returncode == (5 if "tried again 2 times" in result.stderr else 3)
    assert "not even the lowest rate" in result.stdout


# -- what is shown of it -------------------------------------------------------------------------


def test_every_format_from_one_result_and_again_from_the_file(tmp_path: Path) -> None:
    names = ("json", "csv", "markdown", "html", "hgrm")
    first = {name: tmp_path / f"first.{name}" for name in names}
    again = {name: tmp_path / f"again.{name}" for name in names[1:]}
    words = [word for name, file in first.items() for word in (f"--{name}", str(file))]
    result = run("echoload", "compare", *QUICK, "--backends", "thread,selector", *words)
    assert result.returncode == 0, result.stderr
    words = [word for name, file in again.items() for word in (f"--{name}", str(file))]
    shown = run("echoload", "report", str(first["json"]), *words)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == result.stdout
    for name, file in again.items():
        assert file.read_text() == first[name].read_text()
    lines = list(csv.DictReader(io.StringIO(first["csv"].read_text())))
    assert [(line["target"], line["round"]) for line in lines] == [
        ("thread", "1"),
        ("selector", "1"),
    ]
    assert float(lines[0]["messages_per_second"]) > 100
    assert first["markdown"].read_text().startswith("| target | messages/s median |")
    document = json.loads(first["json"].read_text())
    for one in document["results"]:
        histogram = HdrHistogram.decode(one["latency_histogram"])
        assert histogram.get_total_count() == one["verified"]
        assert histogram.get_value_at_percentile(99) == one["latency_us"]["p99"]
    assert first["hgrm"].read_text().count("#[Mean") == 2


@pytest.mark.ci
def test_runs_side_by_side(tmp_path: Path) -> None:
    files = [tmp_path / "monday.json", tmp_path / "tuesday.json"]
    for file in files:
        compared("--backends", "thread", file=file)
    page = tmp_path / "both.html"
    shown = run("echoload", "report", *map(str, files), "--html", str(page))
    assert shown.returncode == 0, shown.stderr
    assert "thread (monday)" in shown.stdout
    assert "thread (tuesday)" in shown.stdout
    assert "thread (tuesday)" in page.read_text()
    other = tmp_path / "other" / "monday.json"
    other.parent.mkdir()
    other.write_text(files[0].read_text())
    shown = run("echoload", "report", str(files[0]), str(other))
    assert f"thread ({files[0]})" in shown.stdout, "two of the same name are told apart"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", '{"schema": "echoload/1", "results": []}'),
        *(f'{{"schema": "echoload/2", "results": {rows}}}' for rows in ("[]", "5", "[{}]", "[5]")),
    ],
)
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    result = preforked.run("echoload", "report", str(file))
    assert result.returncode == 2
    assert str(file) in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_result_that_is_not_there(tmp_path: Path) -> None:
    missing = run("echoload", "report", str(tmp_path / "none.json"))
    assert missing.returncode == 1
    assert "none.json" in missing.stderr


@pytest.mark.ci
def test_progress_lives_on_a_terminal() -> None:
    terminal = Terminal(
        *("echoload", "compare", "--backends", "thread", "--rounds", "2", "-d", "1300ms"),
        *("-c", "4", "--engine", "epoll", "-R", "500", "--warmup", "0"),
    )
    for shown in ("round 1/2", "thread", " messages/s", " left", "round 2/2"):
        terminal.read_until(shown)  # the present rate, in the middle of a round
    terminal.read_until("server CPU")
    assert terminal.close() == 0


@pytest.mark.ci
def test_quiet(tmp_path: Path) -> None:
    result = run("echoload", "compare", *QUICK, "--backends", "thread", "-q")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "thread" in result.stdout


@pytest.mark.ci
def test_doctor_names_what_will_bend_the_numbers() -> None:
    whole = run("echoload", "doctor")
    assert whole.returncode == 0
    for subject in ("open files", "somaxconn", "local ports", "TIME_WAIT", "CPUs", "load average"):
        assert subject in whole.stdout
    ill = subprocess.run(
        ["sh", "-c", 'ulimit -n 200; exec "$0" doctor', command("echoload")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "no more than 168 connections" in ill.stdout
    assert "ulimit -Hn" in ill.stdout


@pytest.mark.parametrize(
    ("user", "programs", "advised", "not_advised"),
    [
        (0, {"apt-get", "sudo"}, ["apt-get install gcc", "sysctl -w net"], ["sudo", "ask"]),
        (1000, {"apt-get", "sudo"}, ["sudo apt-get install gcc", "sudo sysctl -w net"], ["ask"]),
        (
            1000,
            {"apt-get"},
            ["ask the administrator of this machine for a C compiler"],
            ["apt-get", "sudo"],
        ),
        (0, {"dnf"}, ["install a C compiler"], ["apt-get"]),
    ],
    ids=["root", "sudo", "nobody", "no_apt"],
)
def test_doctor_advises_only_what_its_user_may_do(
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    programs: set[str],
    advised: list[str],
    not_advised: list[str],
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 200))
    monkeypatch.setattr("loadtest.machine.doctor.somaxconn", lambda: 128)
    monkeypatch.setattr("loadtest.machine.doctor.local_ports", lambda: (60000, 60100))
    found = {one.subject: one for one in doctor.examine({})}
    ill = {"open files", "somaxconn", "local ports", "C compiler"}
    assert all(found[subject].remedy for subject in ill)
    said = "\n".join(one.remedy for one in found.values())
    for words in advised:
        assert words in said
    for words in not_advised:
        assert not re.search(rf"\b{words}\b", said), said
    if user and "sudo" not in programs:
        for subject in ill:
            assert found[subject].remedy.startswith("ask the administrator of this machine"), (
                subject
            )


NO_TEMPORARY_FOLDER = "import tempfile\ntempfile._candidate_tempdir_list = lambda: []\n"


@pytest.mark.ci
def test_compare_where_no_file_system_can_be_written(tmp_path: Path) -> None:
    """As in a container that was started with --read-only."""
    (tmp_path / "sitecustomize.py").write_text(NO_TEMPORARY_FOLDER)
    (tmp_path / "student.py").write_text(STUDENT)
    words = (
        "compare",
        "--rounds",
        "1",
        "-c",
        "2",
        "-d",
        "500ms",
        "--warmup",
        "0",
        "--engine",
        "epoll",
    )
    result = run(
        *("echoload", *words, "--backends", "thread", "--", sys.executable),
        *(str(tmp_path / "student.py"), "{port}"),
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    if PEERS["c-epoll"].missing:
        return
    result = run("echoload", *words, "-t", "c-epoll", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "no folder for temporary files" in result.stderr
    assert "--tmpfs /tmp:exec" in result.stderr
