"""A server that ends, or fails every connection, under load is no measurement, and it is said."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from clients import EpollLoad, LoadResult, ThreadLoad, Workload
from clients.load import Load
from clients.recording import folded
from loadtest.errors import LoadError
from loadtest.experiments.find_max import SearchResult, Step, find_max
from loadtest.experiments.hold import hold
from loadtest.load.client_limit import ClientLimit
from loadtest.load.round import EndedEarly, Round
from loadtest.machine import environment
from loadtest.results.document import document, load
from loadtest.results.objectives import parse_objectives
from loadtest.results.result import Result
from loadtest.results.schema import Row
from loadtest.results.statistics import least_rounds
from loadtest.results.verdicts import check_objectives, check_regressions
from loadtest.servers.targets import CommandTarget
from tests.loadtest.test_compare import row
from tests.support import wire
from tests.support.launching import Child, await_listening, free_port, run
from tests.support.misbehaving import server as misbehaving

# Echoes right, and ends itself by a signal, or with an exit code, after so many messages.
DIES = """
import asyncio, os, sys

port, messages, how = map(int, sys.argv[1:])
seen = 0

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        global seen
        seen += 1
        if seen > messages:
            os.kill(os.getpid(), -how) if how < 0 else os._exit(how)
        self.transport.write(data)

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", port, backlog=100)
    await server.serve_forever()

asyncio.run(main())
"""
MESSAGES = 2000
QUICK = ("-q", "--engine", "epoll", "--warmup", "0")


@pytest.fixture(scope="module")
def dies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server that ends under load."""
    file = tmp_path_factory.mktemp("servers") / "dies.py"
    file.write_text(DIES)
    return file


@contextmanager
def dying(file: Path, how: int = 1, messages: int = MESSAGES) -> Iterator[wire.Address]:
    port = free_port()
    words = [sys.executable, str(file), str(port), str(messages), str(how)]
    with Child(words, stderr=subprocess.DEVNULL) as process:
        try:
            yield await_listening(port, process)
        finally:
            process.kill()


def saved(path: Path) -> dict[str, Any]:
    (found,) = json.loads(path.read_text())["results"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("engine", ["epoll", pytest.param("threads", marks=pytest.mark.slow)])
def test_a_server_that_dies_in_the_run_is_no_measurement(
    engine: str, dies: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    with dying(dies) as (host, port):
        result = run(
            *("echoload", "run", f"{host}:{port}", "-q", "-c", "4", "-d", "20s"),
            *("--engine", engine, "--json", str(file), "--junit", str(tmp_path / "out.xml")),
            *("--slo", "throughput>1,p99<20s,cpu<1s"),
        )
    assert result.returncode == 4, result.stdout + result.stderr
    assert 'failures="4"' in (tmp_path / "out.xml").read_text()
    found = saved(file)
    assert MESSAGES - 4 <= found["verified"] <= MESSAGES
    assert found["throughput"]["median"] == pytest.approx(found["verified"] / 20, rel=0.01)
    assert found["server"]["cpu_us_per_message"] is None, "it is gone"
    assert found["server"]["peak_rss_bytes"] > 1e6, "this was seen"
    (early,) = found["ended_early"]
    assert early["server_gone"]
    assert early["exit_code"] is None, "it is not our child"
    assert 0 < early["seconds"] < 20
    assert not found["client_limited"]
    # Each second is there, and the last in which there were messages counts as a whole one.
    assert [one["second"] for one in found["series"]] == list(range(20))
    assert {one["seconds"] for one in found["series"][1:]} == {1.0}
    assert sum(one["messages"] for one in found["series"]) == found["verified"]
    where = f"{host}:{port}"
    said = rf"{where}: ended early: the server (1 process of python3 dies.py) was gone after"
    assert said.replace("python3", "") in result.stderr.replace("python3", "").replace(
        Path(sys.executable).name, ""
    )
    assert f"{where}: no objective is met, because it ended early" in result.stderr
    assert "holds" not in result.stderr
    assert "ended early" in result.stdout


@pytest.mark.ci
@pytest.mark.parametrize(
    ("how", "says"),
    [
        pytest.param(7, "exited with 7", id="exit"),
        pytest.param(-signal.SIGKILL, "was killed by SIGKILL", id="signal", marks=pytest.mark.slow),
    ],
)
def test_compare_says_how_a_server_of_its_own_ended(
    how: int, says: str, dies: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", *QUICK, "--backends", "selector", "-c", "4", "-d", "300ms"),
        *("--rounds", "1", "--slo", "errors>=0", "--json", str(file)),
        *("--", f"mine={sys.executable}", str(dies), "{port}", "300", str(how)),
    )
    assert result.returncode == 4, result.stdout + result.stderr
    assert f"echoload: mine: ended early: the server process {says} after 0." in result.stderr
    assert "selector" not in result.stderr, "of which nothing is wrong"
    rows = {one["target"]: one for one in json.loads(file.read_text())["results"]}
    assert [one["exit_code"] for one in rows["mine"]["ended_early"]] == [how]
    assert rows["mine"]["throughput"]["median"] == pytest.approx(300 / 0.3, rel=0.02)
    assert rows["mine"]["server"]["cpu_us_per_message"] is None
    assert rows["selector"]["ended_early"] == []


def test_a_server_that_closes_after_each_message(tmp_path: Path) -> None:
    seen: set[int] = set()

    def once(data: bytes, number: int) -> bytes | None:
        first = number not in seen
        seen.add(number)
        return data if first else None

    file = tmp_path / "out.json"
    with misbehaving(once) as (host, port):
        result = run(
            *("echoload", "run", f"{host}:{port}", "-q", "-c", "4", "-d", "5s"),
            *("--engine", "epoll", "--json", str(file), "--slo", "throughput>0.1"),
        )
    found = saved(file)
    assert found["verified"] == 4
    assert found["throughput"]["median"] == 4 / 5
    (early,) = found["ended_early"]
    assert early["server_gone"] is False
    assert result.returncode == 4
    assert "ended early: every connection had failed after" in result.stderr


@pytest.mark.parametrize("kind", [EpollLoad, ThreadLoad])
def test_a_rate_counts_the_time_that_was_asked_for(kind: type[Load]) -> None:
    """Whichever engine it is, and also where it ends before the warm-up does."""
    with misbehaving(lambda _data, _: None) as (host, port):
        for warmup in (0.0, 30.0):
            engine = kind(Workload(host, port, connections=2, duration=60.0, warmup=warmup))
            assert engine.connect() == 2
            engine.start()
            engine.wait()
            result = engine.finish()
            assert result.errors.total() == 2
            assert result.seconds == pytest.approx(60, abs=0.5)


@pytest.mark.ci
def test_some_failed_connections_are_not_the_end(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with misbehaving(lambda data, number: None if number == 1 else data) as (host, port):
        result = run(
            *("echoload", "run", f"{host}:{port}", "-q", "-c", "3", "-d", "300ms"),
            *("--engine", "epoll", "--json", str(file)),
        )
    assert result.returncode == 0, result.stderr
    assert saved(file)["errors"] == {"closed": 1}
    assert saved(file)["ended_early"] == []


@pytest.mark.ci
@pytest.mark.parametrize("rate", ["2", pytest.param("20", marks=pytest.mark.slow)])
def test_a_schedule_whose_last_message_is_answered_early_is_not_the_end(
    rate: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    with misbehaving(lambda data, _: data) as (host, port):
        result = run(
            *("echoload", "run", f"{host}:{port}", "-q", "-c", "1", "-R", rate, "-d", "700ms"),
            *("--json", str(file)),
        )
    assert result.returncode == 0, result.stderr
    assert saved(file)["ended_early"] == []
    assert saved(file)["throughput"]["median"] == pytest.approx(saved(file)["verified"] / 0.7, 0.02)


@pytest.mark.ci
def test_a_server_that_ends_when_everything_is_answered_ended_in_time(dies: Path) -> None:
    """As one that serves so many clients and exits: with -n, there is a last message."""
    with misbehaving(lambda data, _: data) as (host, port):
        result = run("echoload", "run", f"{host}:{port}", "-q", "-c", "4", "-n", "40")
    assert result.returncode == 0, result.stderr
    with dying(dies, messages=30) as (host, port):
        result = run("echoload", "run", f"{host}:{port}", "-q", "-c", "4", "-n", "40")
    assert result.returncode == 4
    assert "ended early: the server" in result.stderr


@pytest.mark.ci
def test_find_max_ends_where_the_server_does(dies: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with dying(dies, messages=700) as (host, port):
        result = run(
            *("echoload", "find-max", f"{host}:{port}", "-c", "2", "-d", "500ms", "--warmup", "0"),
            *("--slo", "p99<10s", "--json", str(file)),
        )
    assert result.returncode == 4, result.stdout + result.stderr
    assert "ended early: the server" in result.stderr
    found = json.loads(file.read_text())["find_max"]
    assert found["rate"] is None
    assert "was gone" in found["ended_early"]
    assert len(found["steps"]) <= 3, "nobody is asked who is gone"


def test_hold_has_no_cpu_of_a_server_that_is_gone(dies: Path) -> None:
    """It ends when it is asked a second time, after 4 connections and the one that looked."""
    words = [sys.executable, str(dies), "{port}", "6", "3"]
    held = hold(CommandTarget(words, "mine"), 4)
    assert held.held < 4
    assert held.cpu_percent_idle is None
    assert held.ended == "the server process exited with 3"


def test_hold_names_a_server_that_ends_while_connections_are_made() -> None:
    """It takes the one that looks, and those that find out whether it accepts."""
    takes_three = (
        "import os, socket, sys\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=1)\n"
        "listener.accept()[0].close()\n"
        "sock = listener.accept()[0]\n"
        "while data := sock.recv(99): sock.sendall(data)\n"
        "listener.accept()\n"
        "os._exit(5)\n"
    )
    words = [sys.executable, "-c", takes_three, "{port}"]
    with pytest.raises(LoadError, match="mine: the server process exited with 5"):
        hold(CommandTarget(words, "mine"), 400)


# -- what follows from it ------------------------------------------------------------------------


def one_round(rate: float, cpu: float = 1e-5, **changes: Any) -> Round:
    verified = int(rate)
    result = LoadResult(verified=verified, seconds=1.0, served=changes.pop("served", 10))
    result.latency = folded([1000] * min(verified, 100))
    measured = Round(result, client_cpu_percent=50.0, asking=10)
    measured.server_cpu_seconds = cpu * verified
    for name, value in changes.items():
        setattr(measured, name, value)
    return measured


def several(target: str, rate: float, **changes: Any) -> Result:
    """Return a target with as many rounds as a ranking needs, the first of them with `changes`."""
    rounds = [one_round(rate + number) for number in range(least_rounds(3))]
    rounds[0] = one_round(rate, **changes)
    return Result(target, None, "echo", 10, rounds=rounds)


EARLY = EndedEarly("the server process exited with 1", 0.4, server_gone=True, exit_code=1)


def ranks(*results: Result) -> tuple[Mapping[str, int], Mapping[str, int]]:
    (comparison,) = document(list(results), environment.describe(([], [])), {}, [], "a")[
        "comparison"
    ]
    figures = comparison["figures"]
    return figures["cpu_us_per_message"]["ranks"], figures["throughput"]["ranks"]


def test_what_ended_early_is_not_ranked() -> None:
    early = several("best", 9000.0, ended_early=EARLY)
    by_cpu, by_rate = ranks(several("a", 1000.0), several("b", 2000.0), early)
    assert set(by_cpu) == {"a", "b"}
    assert by_rate == {"b": 1, "a": 2}
    found = early.as_json()
    assert found["ended_early"][0]["round"] == 1
    (said,) = found["remarks"]
    assert said.startswith("1 of 5 rounds ended early; in round 1, the server process exited")


def test_who_starves_clients_has_no_rank_by_rate() -> None:
    """Its rate is that of those it served; they had it to themselves."""
    by_cpu, by_rate = ranks(
        several("a", 1000.0), several("b", 2000.0), several("pool", 9000.0, served=9)
    )
    assert set(by_cpu) == {"a", "b", "pool"}
    assert by_rate == {"b": 1, "a": 2}


def test_a_round_without_a_reply_is_said() -> None:
    found = several("a", 1000.0, served=0)
    found.rounds[0].load.verified = 0
    said = found.as_json()
    assert said["rounds_without_a_reply"] == 1
    assert any("1 of 5 rounds verified nothing" in remark for remark in said["remarks"])


def test_what_ended_early_meets_no_objective() -> None:
    found = [row(ended_early=[{"round": 1}]), row(ended_early=[])]
    verdict = check_objectives(found, parse_objectives("p99<20s,errors=0"))
    assert len(verdict.violations) == 1
    assert not verdict.confirmations
    assert not check_objectives(found, ()).violations


def test_a_baseline_is_held_against_rounds_without_a_reply() -> None:
    """They were left out, and so the worst regression of all was none."""
    now = [row(rounds=[0.0] * 6, cpu=[10.0] * 6)]
    verdict = check_regressions(now, [row()], 0.10)
    assert len(verdict.violations) == 1
    assert "throughput is 0.00 times" in verdict.violations[0]
    unknown = row()
    unknown["server"]["cpu"]["rounds"] = []
    verdict = check_regressions([unknown], [row()], 0.10)
    assert any("is not known, and was in the baseline" in one for one in verdict.doubts)
    gone = [row(ended_early=[{"round": 1}])]
    assert any("ended early" in one for one in check_regressions(now, gone, 0.10).doubts)


def test_files_of_before_are_read(tmp_path: Path) -> None:
    """What was added to a result since is not asked of them."""
    found = document([several("a", 1000.0)], environment.describe(([], [])), {}, [])
    for name in ("ended_early", "remarks", "starves", "rounds_without_a_reply"):
        del cast("dict[str, object]", found["results"][0])[name]
    file = tmp_path / "old.json"
    file.write_text(json.dumps(found))
    assert load(str(file))["results"][0]["target"] == "a"


# -- find-max: what the client or the machine spoiled --------------------------------------------


def searched(spoils: dict[int, int], capacity: float = 48_000, **how: Any) -> SearchResult:
    """Search with a server of that capacity, of whose tries some are spoiled, by their number.

    Args:
        spoils: The number of a try → how many in a row are spoiled from there.
        capacity: Messages per second that the server can do.
        how: What spoils them.
    """
    tries = 0
    bad = {first + more for first, count in spoils.items() for more in range(count)}

    def try_rate(rate: float) -> tuple[Round, Row]:
        nonlocal tries
        reached = min(rate, capacity)
        measured = one_round(reached)
        if tries in bad:
            measured = one_round(reached / 2)
            for name, value in how.items():
                setattr(measured, name, value)
        tries += 1
        return measured, Result("it", None, "echo", 10, rounds=[measured]).as_json()

    steps: list[Step] = []
    workload = Workload("127.0.0.1", 1, connections=10, duration=1.0)
    return find_max(workload, parse_objectives("p99<20ms"), try_rate, steps.append)


LIMITED = {"limit": ClientLimit(("it sent 1 % of the messages 3.0 ms or more late",))}


@pytest.mark.parametrize(
    "how", [LIMITED, {"others_share": 0.6, "server_wait_share": 0.4}], ids=["client", "machine"]
)
def test_one_unlucky_try_decides_nothing(how: dict[str, Any]) -> None:
    found = searched({2: 1}, **how)
    assert found.rate is not None
    assert 0.95 * 48_000 <= found.rate <= 48_000
    assert not found.client_limited
    assert not found.inconclusive
    assert [len(step.spoiled) for step in found.steps if step.spoiled] == [1]
    # What is spoiled again and again is not tried for ever, and is a lower bound.
    found = searched({2: 3, 5: 99}, **how)
    assert found.inconclusive
    assert found.rate is not None
    assert found.rate < 2_000
    assert max(len(step.spoiled) for step in found.steps) == 2


def test_what_the_server_failed_is_not_tried_again() -> None:
    found = searched({2: 1})
    assert found.rate is not None
    assert found.rate < 2_000
    assert not any(step.spoiled for step in found.steps)


def test_a_share_of_no_time_is_not_known() -> None:
    """A run of a few messages is over before a share of a core says anything."""
    at_once = Round(LoadResult(verified=1, seconds=0.001, served=1), client_cpu_percent=0.0)
    assert Result("it", None, "echo", 1, rounds=[at_once]).as_json()["client"] == {
        "cpu_percent": None,
        "waited_percent": None,
    }
