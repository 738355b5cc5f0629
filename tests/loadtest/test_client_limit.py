"""Whose limit a run shows: the table of cases that must come out right."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from clients import LoadResult, Workload
from clients.recording import folded
from loadtest.cli.calibrate import calibrate
from loadtest.experiments import calibration, compare
from loadtest.load import capacity
from loadtest.load.client_limit import ClientLimit, judge
from loadtest.load.round import Engine, Round
from loadtest.machine import environment
from loadtest.machine.pinning import choose
from loadtest.peers import PEERS
from loadtest.report.cells import remarks
from loadtest.results.document import document
from loadtest.results.result import Result
from loadtest.servers.targets import BackendTarget
from tests.support import pace
from tests.support.launching import run

MS = 1000


def judged(
    *,
    client: float,
    server: float | None = None,
    thread: float | None = None,
    capacity: float | None = None,
    client_cores_busy: float | None = None,
    rate: float | None = None,
    lag: int = 0,
    latency: int = 5 * MS,
    verified: int = 10_000,
    **workload: Any,
) -> bool:
    load = LoadResult(verified=verified, seconds=1.0)
    load.latency, load.lag = folded([latency] * 100), folded([lag] * 100)
    limit = judge(
        load,
        Workload("127.0.0.1", 1, rate=rate, duration=1.0, **workload),
        client_share=client,
        client_cores_busy=client_cores_busy,
        server_share=server,
        busiest_server_thread=thread,
        capacity=capacity,
    )
    assert bool(limit.reasons) == bool(limit)
    return bool(limit)


@pytest.mark.parametrize(
    ("case", "limited"),
    [
        # A closed loop.
        ({"client": 1.0, "server": 0.5}, True),  # the client at its limit, the server idle
        ({"client": 1.0, "server": 1.0}, False),  # both: the server can do no more
        ({"client": 0.5, "server": 1.0}, False),
        ({"client": 0.1, "server": 0.1}, False),  # neither: something waits, but not the client
        ({"client": 1.0}, True),  # a server that cannot be watched
        ({"client": 0.5}, False),
        ({"client": 1.0, "server": 0.5, "thread": 0.99}, False),  # its one thread is at its limit
        # Others use its cores as well: it could not have had more.
        ({"client": 0.6, "client_cores_busy": 0.99, "server": 0.5}, True),
        ({"client": 0.1, "client_cores_busy": 0.99, "server": 0.5}, False),
        # Near what it is known to reach, however busy it seems.
        ({"client": 0.6, "server": 0.5, "capacity": 10_500}, True),
        ({"client": 0.6, "server": 0.5, "capacity": 30_000}, False),
        ({"client": 0.6, "server": 0.95, "capacity": 10_500}, False),
        # The calibration is for short messages, one at a time.
        ({"client": 0.6, "server": 0.5, "capacity": 10_500, "size": 4096}, False),
        ({"client": 0.6, "server": 0.5, "capacity": 10_500, "pipeline": 4}, False),
        # A schedule: what is late is not the server's latency.
        ({"client": 0.5, "rate": 10_000.0, "lag": 3 * MS}, True),
        ({"client": 0.5, "rate": 10_000.0, "lag": 3 * MS, "latency": 500 * MS}, False),
        ({"client": 0.99, "rate": 10_000.0, "lag": 100}, False),  # busy, and in time
        ({"client": 0.99, "rate": 20_000.0, "lag": 100}, True),  # busy, and half is missing
        ({"client": 0.3, "rate": 20_000.0, "lag": 100}, False),  # the server did not keep up
        ({"client": 1.0, "server": 0.1, "verified": 0}, False),  # a failure, and no figure
    ],
    ids=str,
)
def test_who_is_the_limit(case: dict[str, Any], *, limited: bool) -> None:
    assert judged(**case) is limited


def because(client: float, waited: float, cores: float | None = None) -> tuple[str, ...]:
    load = LoadResult(verified=10_000, seconds=1.0)
    return judge(
        load,
        Workload("127.0.0.1", 1, duration=1.0),
        client_share=client,
        client_waited=waited,
        client_cores_busy=cores,
        server_share=0.2,
        busiest_server_thread=0.2,
        capacity=None,
    ).reasons


def test_the_reason_is_what_was_so() -> None:
    """A core that others had is not a busy client; its own CPU stands in the table."""
    assert because(0.95, 0.03) == ("its CPU was busy for 90% of the time or more",)
    others = ("its core was never idle, and another program had it for part of the time",)
    assert because(0.24, 0.70) == others
    assert because(0.24, 0.18, 0.99) == others
    assert because(0.24, 0.18, 0.50) == ()


def test_each_reason_is_said_once_with_its_targets() -> None:
    rows = []
    for target, cpu, wait in (("a", 0.95, 0.0), ("b", 0.92, 0.0), ("c", 0.2, 0.75), ("d", 0.5, 0)):
        load = LoadResult(verified=100, seconds=1.0, served=1)
        measured = Round(load, 100 * cpu, limit=ClientLimit(because(cpu, wait)))
        rows.append(Result(target, None, "echo", 1, rounds=[measured]))
    found = document(rows, environment.describe(([], [])), {}, [], "a")
    assert [one for one in remarks(found) if "the client was the limit because" in one] == [
        "a, b: the client was the limit because its CPU was busy for 90% of the time or more.",
        (
            "c: the client was the limit because its core was never idle, and another program had "
            "it for part of the time."
        ),
    ]


def compared(*words: str, file: Path, code: int = 0) -> tuple[dict[str, Any], str]:
    result = run(
        *("echoload", "compare", "--rounds", "1", "-d", "700ms", "--json", str(file), *words)
    )
    assert result.returncode == code, result.stdout + result.stderr
    (found,) = json.loads(file.read_text())["results"]
    return found, result.stdout + result.stderr


@pytest.mark.ci
@pytest.mark.parametrize("engine", ["threads", "epoll"])
def test_a_slow_server_and_an_idle_client(engine: str, tmp_path: Path) -> None:
    found, shown = compared(
        *("--backends", "thread", "--handler", "sleep", "--handler-option", "seconds=0.1"),
        *("-c", "3", "--engine", engine),
        file=tmp_path / "out.json",
    )
    assert found["client_limited"] is False
    assert "≥" not in shown
    assert found["throughput"]["median"] < 1.5 * 3 / 0.1
    assert found["latency_us"]["p50"] >= 100_000


@pytest.mark.ci
def test_a_fast_server_and_a_saturated_client(tmp_path: Path) -> None:
    """What is owed for a message takes the client much longer to know than the server to echo."""
    (tmp_path / "slow_to_check.py").write_text(
        "import time\n"
        "from echoserver import Handler\n"
        "class SlowToCheck(Handler):\n"
        "    @staticmethod\n"
        "    def answers(data):\n"
        "        until = time.thread_time() + 0.0005\n"
        "        while time.thread_time() < until: pass\n"
        "        return data\n"
        "    def receive(self, data):\n"
        "        return data\n"
    )
    words = [
        *("--backends", "selector", "--handler", f"{tmp_path}/slow_to_check.py:SlowToCheck"),
        *("--size", "2000", "-c", "10", "--engine", "epoll"),
    ]
    found, shown = compared(*words, file=tmp_path / "out.json")
    assert found["client_limited"] is True
    assert any(word in found["client_limited_because"] for word in ("busy", "never idle"))
    assert "≥ " in shown
    assert found["server"]["cpu_us_per_message"] > 1, "which is valid all the same"
    # A rate that only the client may have failed to reach is no verdict.
    _, shown = compared(*words, "--slo", "throughput>10M", file=tmp_path / "out.json", code=5)
    assert "inconclusive" in shown
    # One that was reached is reached.
    compared(*words, "--slo", "throughput>10,errors=0", file=tmp_path / "out.json")


@pytest.mark.parametrize(
    ("client", "limited", "carried"), [(0.5, False, True), (0.8, False, False), (0.5, True, False)]
)
def test_auto_takes_the_engine_that_is_not_the_limit(
    monkeypatch: pytest.MonkeyPatch, client: float, *, limited: bool, carried: bool
) -> None:
    asked = []

    def measured(workload: Workload, *_: Any, engine: Engine) -> Round:
        asked.append((engine.name, workload.duration))
        limit = ClientLimit(("it was tired",) if limited else ())
        return Round(LoadResult(), client_cpu_percent=100 * client, limit=limit)

    monkeypatch.setattr(compare, "measure", measured)
    cells = [compare.Cell(BackendTarget("thread"), Workload("", 0))] * 2
    plan = compare.Plan(cells, 5, choose("split"), 1, Engine("auto"))
    why = compare.choose_engine(plan, lambda _text: None)
    assert (not why) is carried
    assert {name for name, _ in asked} == {"threads"}
    assert len(asked) == (2 if carried else 1), "no more is tried than it takes"


@pytest.mark.ci
def test_auto_says_what_it_took(tmp_path: Path) -> None:
    _, shown = compared(
        *("--backends", "thread", "--handler", "sleep", "-c", "5"), file=tmp_path / "out.json"
    )
    # Five clients that mostly wait are no work, but where others have the client's core, they are.
    quiet = "Engine: threads, chosen because threads can carry all of them"
    crowded = "Engine: epoll, chosen because threads would be the limit, or nearly, of thread"
    assert quiet in shown or (pace.slowness() > 1.1 and crowded in shown)
    _, shown = compared(
        *("--backends", "thread", "-c", "5", "-R", "9k"), file=tmp_path / "out.json"
    )
    assert "Engine: epoll, chosen because threads would not send 9,000 messages" in shown


@pytest.mark.slow
@pytest.mark.ci
def test_calibration_is_kept_and_used(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    result = run("echoload", "calibrate", "--rounds", "1", env=cache)
    assert result.returncode == 0, result.stderr
    (file,) = (tmp_path / "echoload").iterdir()
    found = json.loads(file.read_text())
    assert set(found) == {"threads", "epoll"}
    assert all(one["capacity"] > 1000 for one in found.values())
    assert str(file) in result.stdout
    in_c = [one["of_c"] for one in found.values()]
    if PEERS["c-epoll"].missing:
        assert in_c == [None, None]
    else:
        assert all(share > 0 for share in in_c)  # how much depends on who else runs
    assert "calibration" in run("echoload", "doctor", env=cache).stdout
    # A capacity so low that every run comes near it.
    file.write_text(json.dumps({"threads": {"capacity": 10.0, "server": "x"}}))
    words = ["--backends", "thread", "--handler", "sleep", "-c", "5", "--engine", "threads"]
    out = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", "--rounds", "1", "-d", "300ms", "--json", str(out), *words),
        env=cache,
    )
    (row,) = json.loads(out.read_text())["results"]
    assert row["client_limited"] is (len(os.sched_getaffinity(0)) > 1)
    file.write_text("what?")
    assert run("echoload", "doctor", env=cache).returncode == 0, "a broken file is none"


def test_a_calibration_that_cannot_be_kept_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(_pinning: object, rates: calibration.Rates) -> None:
        rates.server, rates.by_client = "c-epoll", {"epoll": [1234.0]}

    monkeypatch.setattr("loadtest.cli.actions.calibrate.measure_rates", measured)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(click.ClickException) as failed:
        calibrate.main(["--rounds", "1"], standalone_mode=False)
    assert "1,234 messages/s" in capsys.readouterr().out
    assert "cannot keep it: /proc/nowhere: " in failed.value.message
    assert "XDG_CACHE_HOME" in failed.value.message


def test_a_user_without_a_home_has_no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    assert capacity.load_calibrations() == {}
    with pytest.raises(OSError, match="no home directory"):
        capacity.save_calibrations({})


@pytest.mark.ci
def test_the_gil_stands_in_the_table(tmp_path: Path) -> None:
    found, _ = compared(
        *("-t", f"other=thread,python={sys.executable},workers=2", "-c", "4"),
        file=tmp_path / "out.json",
    )
    assert found["interpreter"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert isinstance(found["interpreter"]["gil"], bool)
    assert found["server"]["processes"] == 3
