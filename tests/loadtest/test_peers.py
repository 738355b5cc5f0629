"""Servers to compare with, the ratios to them, and idle connections."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clients import EchoClient
from loadtest.peers import LIMIT, PEERS, STOCK, peers_of
from loadtest.results.statistics import paired_ratio
from loadtest.servers.targets import PeerTarget
from tests.support.launching import run


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_an_echo_server(name: str, tmp_path: Path) -> None:
    peer = PEERS[name]
    if peer.missing:
        pytest.skip(f"{peer.missing} is not installed")
    with PeerTarget(peer, tmp_path).run() as server:
        clients = [EchoClient(server.host, server.port) for _ in range(50)]
        for number, client in enumerate(clients):
            data = b"%d" % number * 10_000
            assert client.echo(data) == data
        big = bytes(range(256)) * 4096
        assert clients[0].echo(big) == big
        for client in clients:
            client.close()


def test_every_peer_is_compared_with_something() -> None:
    named = {name for names in STOCK.values() for name in names} | set(LIMIT.values())
    assert set(PEERS) == named
    assert peers_of("process")[-1] == "c-fork"
    assert peers_of("some/file.py:Class") == ()


def test_paired_ratios() -> None:
    steady = paired_ratio([2.0, 4.0, 8.0, 16.0], [1.0, 2.0, 4.0, 8.0])
    assert (steady.median, steady.low, steady.high) == (2.0, 2.0, 2.0)
    spread = paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 6)
    assert spread.median == 3.5
    assert 1.0 <= spread.low < 3.5 < spread.high <= 6.0
    assert spread == paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 6)


@pytest.mark.slow
@pytest.mark.ci
def test_compare_with_peers(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", "--peers", "--backends", "asyncio", "--rounds", "2"),
        *("-c", "10", "-d", "1s", "--engine", "epoll", "--json", str(file)),
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(file.read_text())
    targets = [one["target"] for one in document["results"]]
    assert targets[:3] == ["asyncio", "asyncio-streams", "asyncio-protocol"]
    ratios = document["ratios"]["asyncio"]["asyncio-streams"]
    assert len(ratios["throughput"]["rounds"]) == 2
    assert 0.1 < ratios["cpu_us_per_message"]["median"] < 10
    assert re.search(r"asyncio +│ asyncio-streams +│.*\[", result.stdout)


@pytest.mark.ci
def test_usage() -> None:
    result = run("echoload", "compare", "--peers", "--handler", "upper")
    assert result.returncode == 2
    assert "leave out --handler" in result.stderr
    result = run("echoload", "compare", "--server-option", "wrokers=2")
    assert "did you mean 'workers'" in result.stderr
    result = run("echoload", "compare", "--server-option", "handler=cpu")
    assert "has a place of its own" in result.stderr
    result = run("echoload", "compare", "--rounds", "1", "--server-option", "workers=no")
    assert result.returncode == 2
    assert "--server-option workers must be auto" in sentence_of(result.stderr)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "127.0.0.1:9", "--handler", "nope"], "--handler: no handler named 'nope'"),
        (["compare", "--handler-option", "a=1"], "--handler-option: the handler EchoHandler has"),
        (["compare", "--handler-option", "a"], "--handler-option must be KEY=VALUE, not 'a'"),
        (["compare", "--server-option", "affinity=999"], "--server-option affinity: this process"),
        (
            ["compare", "--backends", "thread", "--server-option", "pool_size=3"],
            "--server-option pool_size: none of --backends has a use for it",
        ),
    ],
)
def test_what_cannot_be_run_is_said_before_the_first_round(words: list[str], says: str) -> None:
    result = run("echoload", *words)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.ci
def test_hold_where_not_all_are_accepted() -> None:
    result = run("echoload", "hold", "-c", "30", "--backends", "iterative,thread")
    assert result.returncode == 0, result.stderr
    assert "1 of 30" in result.stdout
    assert "30 of 30" in result.stdout


def sentence_of(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.mark.ci
def test_server_options_reach_every_server(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", "--backends", "selector,thread", "--rounds", "1", "-c", "10"),
        *("--engine", "threads"),
        *("-d", "0.3s", "--server-option", "workers=2", "--json", str(file)),
    )
    assert result.returncode == 0, result.stderr
    for one in json.loads(file.read_text())["results"]:
        assert one["server"]["processes"] == 3


@pytest.mark.ci
@pytest.mark.parametrize("engine", ["threads", "epoll"])
def test_a_connection_per_request(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", "--backends", "thread,selector", "--rounds", "1", "-d", "0.5s"),
        *("--reconnect-every", "1", "-c", "4", "--engine", engine, "--json", str(file)),
    )
    assert result.returncode == 0, result.stderr
    for one in json.loads(file.read_text())["results"]:
        assert one["errors"] == {}
        assert one["verified"] > 100


@pytest.mark.ci
@pytest.mark.parametrize("engine", ["threads", "epoll"])
def test_silent_connections_stay_open(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", "--backends", "selector", "--rounds", "1", "-d", "0.5s"),
        *("-c", "30", "--active", "3", "--engine", engine, "--json", str(file)),
    )
    assert result.returncode == 0, result.stderr
    (one,) = json.loads(file.read_text())["results"]
    assert one["connections"] == 30
    assert one["connections_served"] == 3
    assert (one["starved"], one["errors"]) == (0, {})


@pytest.mark.ci
def test_hold(tmp_path: Path) -> None:
    file = tmp_path / "held.json"
    result = run(
        *("echoload", "hold", "-c", "300", "--backends", "selector,thread", "--json", str(file))
    )
    assert result.returncode == 0, result.stderr
    held = json.loads(file.read_text())["held"]
    assert [one["target"] for one in held] == ["selector", "thread"]
    assert all(one["held"] == one["wanted"] == 300 for one in held)
    assert 0 < held[0]["bytes_each"] < 8 * 1024 < held[1]["bytes_each"] < 64 * 1024
    assert "300 of 300" in result.stdout


@pytest.mark.ci
def test_hold_says_what_it_cannot(tmp_path: Path) -> None:
    result = run("echoload", "hold", "-c", "900000", "--backends", "selector")
    assert result.returncode == 1
    assert "file descriptors" in sentence_of(result.stderr)
    result = run("echoload", "hold", "--json", str(tmp_path / "none" / "x.json"))
    assert result.returncode == 2


@pytest.mark.slow
@pytest.mark.ci
def test_handlers_that_wait_and_compute_are_compared(tmp_path: Path) -> None:
    file = tmp_path / "out.json"

    def compared(*words: str) -> dict[str, dict[str, Any]]:
        result = run(
            *("echoload", "compare", "--rounds", "1", "-d", "0.8s", "-c", "8", "--engine", "epoll"),
            *("--json", str(file), *words),
        )
        assert result.returncode == 0, result.stderr
        return {
            one["target"]: {
                "rate": one["throughput"]["median"],
                "cpu_us": one["server"]["cpu_us_per_message"],
                "handler": one["handler"],
            }
            for one in json.loads(file.read_text())["results"]
        }

    waiting = compared(
        *("--handler", "sleep", "--handler-option", "seconds=0.05"),
        *("--backends", "iterative,thread,selector"),
    )
    assert waiting["thread"]["rate"] > 3 * waiting["iterative"]["rate"]
    assert waiting["selector"]["rate"] > 3 * waiting["iterative"]["rate"]
    computing = compared(
        *("--handler", "cpu", "--handler-option", "milliseconds=4", "--pin", "off"),
        *("--backends", "thread,process"),
    )
    assert all(2000 < one["cpu_us"] < 20_000 for one in computing.values())
    assert computing["process"]["handler"] == "cpu"
