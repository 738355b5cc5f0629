"""Both load clients carry out any workload, and call whatever goes wrong by its name."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import echoserver
from clients import EpollLoad, LoadResult, ThreadLoad, Workload
from clients.address import format_address
from clients.load import Load
from loadtest.misbehaving import FAULTS, misbehaving
from tests.support import pace, wire
from tests.support.certificates import SERVERS
from tests.support.launching import run
from tests.support.misbehaving import accepting, ending_with_its_reply
from tests.support.misbehaving import server as custom_server

ENGINES: dict[str, type[Load]] = {"threads": ThreadLoad, "epoll": EpollLoad}


def carry_out(engine: str, address: wire.Address, **options: Any) -> LoadResult:
    """Run a workload in this process."""
    load = ENGINES[engine](Workload(*address, **options))
    load.connect()
    load.start()
    load.wait()
    return load.finish()


def measured(address: wire.Address, *words: str, file: Path, code: int = 0) -> dict[str, Any]:
    """Run a workload through the command line, and return the result."""
    result = run("echoload", "run", format_address(*address), *words, "--json", str(file))
    assert result.returncode == code, result.stdout + result.stderr
    (found,) = json.loads(file.read_text())["results"]
    assert isinstance(found, dict)
    return found


def received(server: echoserver.SpawnedServer) -> int:
    """Stop a server, and return how many bytes it got."""
    server.stop()
    assert server.stopped is not None
    return int(server.stopped["bytes_in"])


# -- any workload --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"pipeline": 4},
        {"pipeline": 40},
        {"pipeline": 3, "size": 200_000},
        {"size": "uniform:1:4096"},
        {"size": "uniform:1:40", "pipeline": 5},
        {"think": "1ms"},
        {"think": "exp:2ms", "pipeline": 2},
        {"reconnect_every": 1},
        {"reconnect_every": 3, "pipeline": 2},
        {"rate": 2000.0},
        {"rate": 2000.0, "pipeline": 3, "reconnect_every": 5},
    ],
    ids=str,
)
def test_each_message_is_sent_once_and_verified(
    engine: str, echo_server: echoserver.SpawnedServer, options: dict[str, Any]
) -> None:
    messages = 30 if options.get("size") == 200_000 else 300
    result = carry_out(
        engine, echo_server.address, connections=7, duration=None, messages=messages, **options
    )
    assert not result.errors, result.first_errors
    assert (result.verified, result.served, result.starved) == (messages, 7, 0)
    assert result.latency.get_total_count() == messages
    echo_server.stop()
    assert echo_server.stopped is not None
    assert echo_server.stopped["bytes_in"] == echo_server.stopped["bytes_out"]
    if options.get("size") is None:
        assert echo_server.stopped["bytes_in"] == 64 * messages
    # Each connection makes a new one after every so many messages, but for the last.
    every = options.get("reconnect_every", messages)
    shares = [messages // 7 + (n < messages % 7) for n in range(7)]
    assert echo_server.stopped["connections"] == sum(-(-share // every) for share in shares)


def test_what_is_under_way_at_the_end_is_drained(
    engine: str, echo_server: echoserver.SpawnedServer
) -> None:
    result = carry_out(engine, echo_server.address, connections=9, duration=0.3, pipeline=3)
    assert not result.errors, result.first_errors
    assert 0 < result.drained <= 27
    assert received(echo_server) == 64 * (result.verified + result.drained)


def test_the_warm_up_does_not_count(engine: str, echo_server: echoserver.SpawnedServer) -> None:
    result = carry_out(engine, echo_server.address, connections=5, duration=0.4, warmup=0.4)
    assert result.seconds > 0.25
    assert pace.within(result.seconds - 0.4, 0.15)
    sent = received(echo_server) / 64
    assert 0 < result.verified + result.drained < sent  # how many, the machine decides


def test_think_time_is_kept(engine: str, echo_server: echoserver.SpawnedServer) -> None:
    result = carry_out(
        engine, echo_server.address, connections=4, duration=None, messages=40, think="20ms"
    )
    assert result.verified == 40
    assert result.seconds >= 0.18, "ten each, and nine pauses between them"
    assert pace.within(result.seconds, 2)
    median = result.latency.get_value_at_percentile(50) / 1e6
    assert pace.within(median, 0.02), "they are no part of a latency"


@pytest.mark.ci
@pytest.mark.parametrize("processes", ["1", "3"])
def test_a_rate_is_kept(
    engine: str, processes: str, echo_server: echoserver.SpawnedServer, tmp_path: Path
) -> None:
    found = measured(
        echo_server.address,
        *("--engine", engine, "--processes", processes, "-c", "10", "-R", "1k", "-d", "1s"),
        file=tmp_path / "out.json",
    )
    assert found["verified"] + found["drained"] + found["dropped"] == 1000
    assert found["verified"] > 900 / pace.slowness()
    assert found["raw_latency_us"]["p50"] <= found["latency_us"]["p50"]
    assert pace.within(found["lag_us"]["p50"] / 1e6, 0.05)


@pytest.mark.ci
def test_a_ramp_rises(echo_server: echoserver.SpawnedServer, tmp_path: Path) -> None:
    found = measured(
        echo_server.address,
        *("--engine", "epoll", "-c", "10", "-R", "200:2000", "-d", "3s"),
        file=tmp_path / "out.json",
    )
    rates = [second["messages"] for second in found["series"][:3]]
    off = min(0.25 * pace.slowness(), 0.9)  # what is late counts in the next second
    assert rates == [pytest.approx(one, rel=off) for one in (500, 1100, 1700)]


@pytest.mark.ci
def test_processes_share_the_connections(
    engine: str, echo_server: echoserver.SpawnedServer, tmp_path: Path
) -> None:
    found = measured(
        echo_server.address,
        *("--engine", engine, "--processes", "3", "-c", "10", "-n", "1003"),
        file=tmp_path / "out.json",
    )
    assert found["verified"] == 1003
    assert found["connections_served"] == 10
    assert received(echo_server) == 64 * 1003


@pytest.mark.ci
def test_time_series(engine: str, echo_server: echoserver.SpawnedServer, tmp_path: Path) -> None:
    found = measured(
        echo_server.address,
        *("--engine", engine, "-c", "4", "-R", "500", "-d", "2200ms", "--warmup", "200ms"),
        file=tmp_path / "out.json",
    )
    assert [second["second"] for second in found["series"]] == [0, 1, 2]
    assert sum(second["messages"] for second in found["series"]) == found["verified"]
    assert all(second["p50_us"] <= second["p99_us"] for second in found["series"])


# -- coordinated omission ------------------------------------------------------------------------


def test_a_stall_shows_as_long_as_it_was(
    engine: str, echo_server: echoserver.SpawnedServer
) -> None:
    """Half of a run stands still: a message that was due then waited for the rest of the stall.

    Of 2 seconds at an even rate, the messages due in a second of standing still take from a second
    down to nothing; so a tenth of all (p90) take 0.8 s or more, a hundredth 0.98. A busy machine
    makes the stall longer, and lets the server catch up later, but none of these shorter.
    """
    stalled = []
    load = ENGINES[engine](Workload(*echo_server.address, connections=10, duration=2.0, rate=500.0))
    load.connect()

    def stall() -> None:
        time.sleep(0.5)  # into the run: standing still then is what is tested
        echo_server.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        time.sleep(1)
        stalled.append(time.monotonic() - begun)
        echo_server.process.send_signal(signal.SIGCONT)

    stalling = threading.Thread(target=stall)
    load.start()
    stalling.start()
    load.wait()
    result = load.finish()
    stalling.join()
    assert not result.errors
    for percentile in (90, 95, 99):
        seconds = result.latency.get_value_at_percentile(percentile) / 1e6
        due = stalled[0] - 2 * (1 - percentile / 100)
        assert seconds > due - 0.15
        assert pace.within(seconds - due, 0.15)
    # What was sent meanwhile was one message for each connection: the raw figure hides the rest.
    assert pace.within(result.raw.get_value_at_percentile(90) / 1e6, 0.3)
    assert result.raw.get_max_value() / 1e6 > 0.7


def test_what_is_never_sent_is_dropped(engine: str) -> None:
    with misbehaving("stalls") as address:
        result = carry_out(engine, address, connections=3, duration=1.0, rate=300.0, timeout=2.0)
    # From message 3 of connection 2 on, nothing more of its hundred was sent; a crowded machine
    # drops a few of the others'.
    assert 94 <= result.dropped < 150
    assert result.verified + result.drained + result.dropped == 299


def test_who_is_silent_by_request_drops_nothing(
    engine: str, echo_server: echoserver.SpawnedServer
) -> None:
    result = carry_out(
        engine, echo_server.address, connections=10, active=2, duration=0.5, rate=100.0
    )
    # Of 50 that are due, 40 would be those of the silent. A crowded machine drops a few itself.
    assert result.dropped < 20
    assert result.verified + result.drained + result.dropped == 50


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("truncates", {"truncated": 1}),
        ("cuts", {"truncated": 1}),
        ("corrupts", {"corrupted": 1}),
        ("swaps", {"foreign": 2}),
        ("duplicates", {"duplicated": 1}),
        ("reorders", {"reordered": 1}),
        ("loses", {"lost": 1}),
        ("resets", {"reset": 1}),
        ("stalls", {"timeout": 1}),
        ("greets", {"unexpected": 1}),
        ("closes", {"closed": 1}),
        ("behaves", {}),
    ],
)
@pytest.mark.parametrize("pipeline", [1, 4])
def test_each_fault_is_called_by_its_name_once(
    engine: str, fault: str, kinds: dict[str, int], pipeline: int
) -> None:
    if pipeline == 1 and fault in {"reorders", "loses"}:
        return  # there is no other message under way
    with misbehaving(fault) as address:
        result = carry_out(
            engine,
            address,
            connections=5,
            duration=None,
            messages=100,
            pipeline=pipeline,
            timeout=1.0,
        )
    assert dict(result.errors) == kinds, result.first_errors
    assert result.verified >= 20 * (5 - sum(kinds.values()))
    # Three messages were answered before; to be greeted is wrong from the beginning.
    assert (result.served, result.starved) == (5 - (fault == "greets"), 0)
    for kind, first in result.first_errors.items():
        if kind in {"corrupted", "foreign", "duplicated", "reordered", "lost"}:
            assert "connection 2, message" in first or "connection 3, message" in first
        if kind == "corrupted":
            assert "byte 40" in first
            assert "was owed" in first


@pytest.mark.parametrize("options", [{}, {"pipeline": 2}, {"rate": 9.0}], ids=str)
def test_the_first_reply_may_take_longer(engine: str, options: dict[str, Any]) -> None:
    """Who was never served is starved, and may wait: a pool's next client does."""

    unit = 0.4 * pace.slowness()

    def slow_at_first(data: bytes, number: int) -> bytes:
        if number not in seen:
            seen.add(number)
            time.sleep(2 * unit)  # being late is what is tested
        return data

    seen: set[int] = set()
    with custom_server(slow_at_first) as address:
        result = carry_out(
            engine, address, connections=3, duration=3.3 * unit, timeout=unit, **options
        )
    assert not result.errors, result.first_errors
    assert (result.served, result.starved) == (3, 0)


def test_connecting_takes_no_longer_for_many(engine: str) -> None:
    """A server that accepts nobody: all wait at the same time."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        load = ENGINES[engine](
            Workload("127.0.0.1", port, connections=20, duration=0.1, timeout=0.5)
        )
        begun = time.monotonic()
        assert load.connect() <= 2
        assert pace.within(time.monotonic() - begun, 3)
        load.start()
        load.wait()
        assert load.finish().errors["timeout"] >= 18


def test_how_a_server_ends_what_is_answered_is_its_own_affair(engine: str) -> None:
    def reset_at_the_end(sock: socket.socket, _number: int) -> None:
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)
            wire.reset_on_close(sock)

    with accepting(reset_at_the_end) as address:
        result = carry_out(engine, address, connections=3, duration=None, messages=30)
    assert not result.errors, result.first_errors
    assert result.verified == 30


@pytest.mark.ci
def test_the_series_counts_errors_of_all_processes(tmp_path: Path) -> None:
    """Also of those processes that have nothing more to do."""
    with misbehaving("closes") as address:
        found = measured(
            address,
            *("--engine", "epoll", "--processes", "3", "-c", "3", "-R", "30", "-d", "2200ms"),
            file=tmp_path / "out.json",
        )
    assert found["errors"] == {"closed": 1}
    assert [second["errors"] for second in found["series"]][-1] == 1


def test_every_fault_is_tested() -> None:
    (marks,) = (
        mark
        for mark in test_each_fault_is_called_by_its_name_once.pytestmark  # type: ignore[attr-defined]
        if mark.args[0] == ("fault", "kinds")
    )
    assert {fault for fault, _ in marks.args[1]} == set(FAULTS)


@pytest.mark.parametrize(("fault", "code"), [("corrupts", 4), ("resets", 0), ("behaves", 0)])
def test_a_wrong_reply_decides_the_exit_code(fault: str, code: int, tmp_path: Path) -> None:
    with misbehaving(fault) as address:
        found = measured(address, "-c", "5", "-n", "100", file=tmp_path / "out.json", code=code)
    assert sum(found["errors"].values()) == (fault != "behaves")


@pytest.mark.ci
def test_an_error_says_what_came_and_what_was_owed(tmp_path: Path) -> None:
    with misbehaving("swaps") as address:
        found = measured(address, "-c", "5", "-n", "100", file=tmp_path / "out.json", code=4)
    assert found["first_errors"]["foreign"].startswith("connection ")
    assert "message 3, byte" in found["first_errors"]["foreign"]
    assert "came where" in found["first_errors"]["foreign"]
    assert "it is connection" in found["first_errors"]["foreign"]


# -- TLS -----------------------------------------------------------------------------------------


@contextmanager
def tls_server(version: ssl.TLSVersion) -> Iterator[wire.Address]:
    """Echo over TLS, a thread for each client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(SERVERS.issue())

    def converse(raw: socket.socket, _number: int) -> None:
        with suppress(OSError), context.wrap_socket(raw, server_side=True) as sock:
            while data := sock.recv(65536):
                sock.sendall(data)
            sock.unwrap()

    with accepting(converse) as address:
        yield address


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    "options", [{}, {"pipeline": 3, "size": 50_000}, {"reconnect_every": 4}], ids=str
)
def test_tls(engine: str, version: ssl.TLSVersion, options: dict[str, Any]) -> None:
    with tls_server(version) as address:
        result = carry_out(
            engine,
            address,
            connections=4,
            duration=None,
            messages=60,
            tls=True,
            ca=SERVERS.cert,
            timeout=5.0,
            **options,
        )
    assert not result.errors, result.first_errors
    assert result.verified == 60


def test_a_certificate_that_is_not_trusted(engine: str, tmp_path: Path) -> None:
    words = ["--engine", engine, "-c", "2", "-n", "4", "--tls"]
    with tls_server(ssl.TLSVersion.TLSv1_3) as address:
        found = measured(address, *words, file=tmp_path / "out.json", code=4)
        assert found["errors"] == {"tls": 2}
        assert "CERTIFICATE_VERIFY_FAILED" in found["first_errors"]["tls"]
        trusting = measured(address, *words, "--insecure", file=tmp_path / "out.json")
    assert trusting["verified"] == 4


@pytest.mark.parametrize("options", [{}, {"pipeline": 2}, {"rate": 50.0}], ids=str)
def test_an_end_in_the_segment_of_a_reply_is_noticed_at_once(
    engine: str, options: dict[str, Any]
) -> None:
    """TLS has read it together with the reply; the socket does not become readable again."""
    begun = time.monotonic()
    with ending_with_its_reply(lambda data: data[:-1]) as address:
        result = carry_out(
            engine,
            address,
            connections=2,
            duration=None,
            messages=4,
            tls=True,
            ca=SERVERS.cert,
            timeout=5.0,
            **options,
        )
    assert result.errors == {"truncated": 2}, result.first_errors
    assert pace.within(time.monotonic() - begun, 5.0), "it waited for its timeout"


# -- what it costs -------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.parametrize("engine", [pytest.param("threads", marks=pytest.mark.slow), "epoll"])
def test_memory_stays_the_same(engine: str, echo_server: echoserver.SpawnedServer) -> None:
    """What is measured is folded once a second; a longer run must not take more."""
    script = (
        "import resource, sys\n"
        "from clients import EpollLoad, ThreadLoad, Workload\n"
        "engine = {'threads': ThreadLoad, 'epoll': EpollLoad}[sys.argv[1]]\n"
        "sizes = []\n"
        "def look(_second):\n"
        "    with open('/proc/self/statm') as file:\n"
        "        sizes.append(int(file.read().split()[1]) * 4)\n"
        "load = engine(Workload('127.0.0.1', int(sys.argv[2]), connections=20, duration=6.0,\n"
        "    rate=4000.0), None, look)\n"
        "load.connect(); load.start(); load.wait(); load.finish()\n"
        "print(sizes[1], sizes[5])\n"
    )
    words = [sys.executable, "-c", script, engine, str(echo_server.port)]
    result = subprocess.run(
        words, capture_output=True, text=True, check=True, timeout=60, env={**os.environ}
    )
    early, late = map(int, result.stdout.split())
    assert late - early < 1500, "KiB, after 16,000 more messages"
