"""The load tester: what it measures is real, and what is wrong does not pass."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import echoserver
from clients.address import format_address
from clients.connecting import Connector
from clients.content import Content
from clients.epoll import EpollLoad
from clients.threads import ThreadLoad
from clients.tls import Socket
from clients.workload import Workload
from tests.support import inspection, pace, preforked, wire
from tests.support.launching import Child, command, few_tasks, free_port, run
from tests.support.misbehaving import Answer
from tests.support.misbehaving import server as misbehaving


@pytest.fixture(params=["threads", pytest.param("epoll", marks=pytest.mark.slow)])
def usual_engine(request: pytest.FixtureRequest) -> str:
    """One is enough by default where `test_engines` holds both of them to the same."""
    return str(request.param)


def load(address: wire.Address, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run("echoload", "run", format_address(*address), *words, **options)


def one_result(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    assert document["schema"] == "echoload/2"
    (result,) = document["results"]
    assert isinstance(result, dict)
    return result


# -- run -----------------------------------------------------------------------------------------


@pytest.mark.ci
def test_run_for_a_time(engine: str, echo_server: echoserver.SpawnedServer, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = load(
        echo_server.address, "--engine", engine, "-c", "20", "-d", "500ms", "--json", str(file)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert format_address(*echo_server.address) in result.stdout
    found = one_result(file)
    assert found["target"] == format_address(*echo_server.address)
    assert found["backend"] is None
    assert found["connections"] == found["connections_served"] == 20
    assert found["errors"] == {}
    assert found["verified"] > 100
    assert found["throughput"]["median"] == pytest.approx(found["verified"] / 0.5, rel=0.1)
    assert found["throughput"]["rounds"] == [found["throughput"]["median"]]
    latency = found["latency_us"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"]
    assert latency["p999"] <= latency["max"]
    assert pace.within(latency["max"] / 1e6, 1)
    assert 1 < found["server"]["cpu_us_per_message"] < 1000, "it is on this machine"
    assert found["server"]["processes"] == 1
    assert found["client"]["cpu_percent"] > 0
    environment = json.loads(file.read_text())["environment"]
    assert {"interpreter", "kernel", "cpus", "affinity", "limits", "versions", "command"} <= set(
        environment
    )
    assert environment["interpreter"]["gil"] in {True, False}
    assert "echoload run" in environment["command"]


@pytest.mark.parametrize(("connections", "messages"), [(10, 1003), (10, 7), (1, 1)])
def test_run_for_a_number_of_messages(
    usual_engine: str,
    echo_server: echoserver.SpawnedServer,
    tmp_path: Path,
    connections: int,
    messages: int,
) -> None:
    file = tmp_path / "out.json"
    words = ["-c", str(connections), "-n", str(messages), "--json", str(file)]
    assert load(echo_server.address, "--engine", usual_engine, *words).returncode == 0
    found = one_result(file)
    assert found["verified"] == messages
    assert found["connections_served"] == min(connections, messages)
    echo_server.stop()
    assert echo_server.stopped is not None
    assert echo_server.stopped["bytes_in"] == 64 * messages


@pytest.mark.ci
@pytest.mark.parametrize("size", ["1", "19", "70000", "3000000"])
def test_run_with_messages_of_any_size(
    usual_engine: str, echo_server: echoserver.SpawnedServer, tmp_path: Path, size: str
) -> None:
    file = tmp_path / "out.json"
    words = ["-c", "3", "-n", "9", "--size", size, "--json", str(file)]
    assert load(echo_server.address, "--engine", usual_engine, *words).returncode == 0
    assert one_result(file)["verified"] == 9


@pytest.mark.ci
def test_run_against_upper(engine: str, tmp_path: Path) -> None:
    with echoserver.spawn(handler="upper") as server:
        right = load(server.address, "--engine", engine, "-c", "3", "-n", "9", "--handler", "upper")
        assert right.returncode == 0
        wrong = load(server.address, "--engine", engine, "-c", "3", "-n", "9")
    assert wrong.returncode == 4
    assert "corrupted 3" in wrong.stdout


@pytest.mark.ci
def test_a_pool_starves_and_the_table_shows_it(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with echoserver.spawn(backend="pool", pool_size=4) as server:
        result = load(
            server.address, "--engine", engine, "-c", "10", "-d", "500ms", "--json", str(file)
        )
        assert result.returncode == 0, "starving is the model's nature, not an error"
        found = one_result(file)
        assert found["connections_served"] == 4
        assert found["starved"] == 6
        assert found["errors"] == {}
        assert "4 of 10" in result.stdout
        assert "6 of 10 connections never got a reply" in result.stdout
        # With a number of messages each, a client that is done makes room: nobody starves.
        assert (
            load(
                server.address, "--engine", engine, "-c", "10", "-n", "50", "--json", str(file)
            ).returncode
            == 0
        )
        assert one_result(file)["connections_served"] == 10


def once(wrong: Answer) -> Answer:
    """Answer every connection right, but do `wrong` with connection 2's third message."""
    seen: Counter[int] = Counter()

    def answer(data: bytes, number: int) -> bytes | None:
        seen[number] += 1
        return wrong(data, number) if number == 2 and seen[number] == 3 else data

    return answer


def corrupted(data: bytes, _number: int) -> bytes:
    return data[:40] + bytes([data[40] ^ 0x20]) + data[41:]


def other_connections(data: bytes, _number: int) -> bytes:
    owner = (int(data[:4], 16) + 1) % 5
    return Content(1, owner, len(data)).message(int(data[5:13], 16))[0]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("kind", "wrong", "hard", "code"),
    [
        ("corrupted", corrupted, False, 4),
        ("foreign", other_connections, False, 4),
        ("closed", lambda data, _: None, False, 0),
        ("truncated", lambda data, _: data[:10], False, 4),
        ("reset", lambda data, _: None, True, 0),
        ("timeout", lambda data, _: b"", False, 0),
    ],
)
def test_each_kind_of_error_is_counted_once(
    usual_engine: str, kind: str, wrong: Answer, *, hard: bool, code: int, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    with misbehaving(once(wrong), hard=hard) as address:
        result = load(
            address,
            "--engine",
            usual_engine,
            "-c",
            "5",
            "-n",
            "100",
            "--timeout",
            "1s",
            "--seed",
            "1",
            "--json",
            str(file),
        )
    found = one_result(file)
    assert found["errors"] == {kind: 1}
    assert result.returncode == code
    assert found["verified"] == 4 * 20 + 2
    assert kind in found["first_errors"]
    if kind == "corrupted":
        assert "message 2, byte 40" in found["first_errors"][kind]


@pytest.mark.ci
def test_a_greeting_is_no_echo(engine: str) -> None:
    with misbehaving(lambda data, _: data + b"!") as address:
        assert load(address, "--engine", engine, "-c", "1", "-n", "1").returncode == 4


@pytest.mark.ci
def test_nothing_verified_is_a_failure(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    refused = load(
        ("127.0.0.1", free_port()),
        "--engine",
        engine,
        "-c",
        "3",
        "-d",
        "200ms",
        "--json",
        str(file),
    )
    assert refused.returncode == 4
    assert one_result(file)["errors"] == {"refused": 3}
    with misbehaving(lambda _data, _: b"") as address:
        silent = load(address, "--engine", engine, "-c", "3", "-d", "200ms", "--json", str(file))
    assert silent.returncode == 4
    assert "nothing was verified" in silent.stdout
    found = one_result(file)
    assert found["errors"] == {}
    assert (found["starved"], found["verified"], found["connections_served"]) == (3, 0, 0)
    assert found["latency_us"]["p50"] is None


@pytest.mark.ci
def test_a_barrier_holds_until_all_have_connected(echo_server: echoserver.SpawnedServer) -> None:
    """400 real threads in one process, none of which sends before the last has connected."""
    host, port = echo_server.address
    run_ = ThreadLoad(Workload(host, port, connections=400, duration=None, messages=1200))
    assert run_.connect() == 400
    assert threading.active_count() >= 400
    assert wire.eventually(lambda: inspection.state(echo_server.pid).threads == 401)
    used = inspection.cpu_seconds(echo_server.pid)
    time.sleep(0.2)  # in which they must be silent
    assert inspection.cpu_seconds(echo_server.pid) - used < 0.05
    run_.start()
    run_.wait()
    result = run_.finish()
    assert result.served == 400
    assert result.verified == result.latency.get_total_count() == 1200
    assert not result.errors


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "nowhere"], "HOST:PORT"),
        (["run", "127.0.0.1:1", "-d", "1s", "-n", "5"], "contradict"),
        (["run", "127.0.0.1:1", "-d", "soon"], "500ms"),
        (["run", "127.0.0.1:1", "-d", "0"], "more than 0"),
        (["run", "tcp://127.0.0.1:9"], "leave out tcp://, as in 127.0.0.1:9"),
        (["run", "127.0.0.1:1", "--slo", "p99<20"], "p99<20ms, or p99<20s, or p99<20us?"),
        (
            ["run", "127.0.0.1:1", "--slo", "p99.9<1s"],
            "p50, p90, p95, p99, p999, max, mean, errors",
        ),
        (["find-max", "127.0.0.1:1", "--slo", "p99.9<1s"], "did you mean p999?"),
        (["run", "127.0.0.1:1", "-c", "0"], "-c"),
        (["run", "127.0.0.1:1", "--json", "/no/such/folder/x.json"], "/no/such/folder"),
        (["compare", "--backends", "thraed"], "did you mean 'thread'"),
        (["compare", "--backends", ","], "names no backend"),
        (["compare", "--rounds", "0"], "--rounds"),
        (["compare", "--pin", "no"], "--pin"),
        (["explode"], "explode"),
    ],
)
def test_usage_errors_are_one_sentence(words: list[str], says: str) -> None:
    result = preforked.run("echoload", *words)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_name_that_does_not_resolve() -> None:
    result = run("echoload", "run", "host.invalid:1")
    assert result.returncode == 1
    assert "host.invalid" in result.stderr


def test_more_connections_than_descriptors() -> None:
    result = subprocess.run(
        ["sh", "-c", 'ulimit -n 100; exec "$0" run 127.0.0.1:1 -c 400', command("echoload")],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert result.returncode == 1
    assert "ulimit -Hn" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.ci
def test_run_and_doctor_agree_on_how_many_connections_there_can_be() -> None:
    script = (
        'ulimit -n 64; "$0" doctor | grep "open files"; "$0" run 127.0.0.1:1 -c 32 -n 1 -q; '
        'echo "exit $?"; "$0" run 127.0.0.1:1 -c 33 -n 1 -q; echo "exit $?"'
    )
    result = subprocess.run(
        ["sh", "-c", script, command("echoload")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "no more than 32 connections at a time" in result.stdout
    assert re.findall("exit [0-9]", result.stdout) == ["exit 4", "exit 1"]
    assert "33 connections need 65 file descriptors" in result.stderr


@pytest.mark.ci
@pytest.mark.parametrize("command_", ["run", "compare"])
def test_auto_takes_the_event_loop_where_threads_cannot_be_started(
    command_: str, echo_server: echoserver.SpawnedServer, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    where = format_address(*echo_server.address)
    words = ["-q", "-c", "100", "-d", "200ms", "--json", str(file)]
    words = [where, *words] if command_ == "run" else ["-t", where, "--rounds", "1", *words]
    with few_tasks(60) as limited:
        auto = subprocess.run(
            [*limited, command("echoload"), command_, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        told = subprocess.run(
            [*limited, command("echoload"), command_, *words, "--engine", "threads"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert auto.returncode == 0, auto.stderr
    assert "Engine: epoll, chosen because cannot start 100 threads" in auto.stdout
    assert one_result(file)["connections_served"] == 100
    assert told.returncode == 1
    assert "cannot start 100 threads" in told.stderr


@pytest.mark.ci
def test_connecting_to_who_accepts_nothing_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once one has not been accepted within the timeout, the others are not tried."""
    file = tmp_path / "out.json"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        words = ["-c", "3000", "-d", "100ms", "--timeout", "300ms", "--engine", "epoll"]
        load(listener.getsockname(), *words, "--json", str(file))
        begun: list[float] = []
        begin = Connector.begin

        def counted(connector: Connector, timeout: float) -> Socket:
            begun.append(timeout)
            return begin(connector, timeout)

        monkeypatch.setattr(Connector, "begin", counted)
        host, port = listener.getsockname()
        counting = EpollLoad(Workload(host, port, connections=3000, timeout=0.1))
        assert counting.connect() <= 2
        counting.start()
        counting.wait()
        counting.finish()
    assert len(begun) < 1000
    found = one_result(file)
    assert found["connections_made"] <= 2
    assert found["errors"]["timeout"] >= 2998


@pytest.mark.ci
@pytest.mark.parametrize("every", [2, 5])
def test_a_server_that_loses_a_byte_now_and_then_does_not_pass(
    engine: str, every: int, tmp_path: Path
) -> None:
    counts: Counter[int] = Counter()

    def lossy(data: bytes, number: int) -> bytes:
        counts[number] += 1
        return data[:-1] if counts[number] % every == 0 else data

    file = tmp_path / "out.json"
    with misbehaving(lossy) as address:
        load(
            address,
            "--engine",
            engine,
            "-c",
            "4",
            "-d",
            "300ms",
            "--timeout",
            "1s",
            "--json",
            str(file),
        )
    found = one_result(file)
    assert found["errors"] == {"truncated": 4}
    assert found["starved"] == 0


@pytest.mark.ci
def test_part_of_a_reply_is_no_starvation(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    for size in ("64", "40000"):
        begun: set[int] = set()

        def part(data: bytes, number: int, begun: set[int] = begun) -> bytes:
            """Answer every other connection with ten bytes; 40,000 may come in several pieces."""
            first = number not in begun
            begun.add(number)
            return data if number % 2 == 0 else data[: 10 * first]

        with misbehaving(part) as address:
            words = ["-c", "4", "-d", "300ms", "--timeout", "1s", "--size", size]
            load(address, "--engine", engine, *words, "--json", str(file))
        found = one_result(file)
        assert found["errors"] == {"truncated": 2}
        assert (found["starved"], found["connections_served"]) == (0, 2)


def test_timeout_is_for_the_whole_reply(engine: str, tmp_path: Path) -> None:
    (tmp_path / "drips.py").write_text(
        "from echoserver import Handler, Sleep\n"
        "class Drips(Handler):\n"
        "    def receive(self, data):\n"
        "        for byte in data:\n"
        "            yield bytes([byte])\n"
        "            yield Sleep(0.2)\n"
    )
    file = tmp_path / "out.json"
    with echoserver.spawn(handler=f"{tmp_path}/drips.py:Drips") as server:
        load(
            server.address,
            "--engine",
            engine,
            *("-c", "1", "-n", "1", "--size", "20", "--timeout", "1s", "--json", str(file)),
        )
    assert one_result(file)["errors"] == {"timeout": 1}


@pytest.mark.ci
def test_who_waits_in_vain_does_not_slow_the_others(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with misbehaving(lambda data, number: b"" if number % 2 else data) as address:
        load(address, "-c", "10", "-n", "1000", "--timeout", "2s", "--json", str(file))
    found = one_result(file)
    assert (found["verified"], found["starved"]) == (500, 5)
    assert found["throughput"]["median"] > 500


@pytest.mark.ci
def test_json_to_a_pipe_or_through_a_link(
    echo_server: echoserver.SpawnedServer, tmp_path: Path
) -> None:
    real, link, pipe = tmp_path / "real.json", tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(real)
    words = ["-c", "1", "-n", "1", "--json"]
    assert load(echo_server.address, *words, str(link)).returncode == 0
    assert link.is_symlink()
    assert one_result(real)["verified"] == 1
    os.mkfifo(pipe)
    with Child(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        assert load(echo_server.address, *words, str(pipe)).returncode == 0
        assert json.loads(reader.communicate()[0])["schema"] == "echoload/2"
    assert pipe.is_fifo()


@pytest.mark.ci
def test_json_that_cannot_be_written_is_said_after_the_table(
    echo_server: echoserver.SpawnedServer, tmp_path: Path
) -> None:
    result = load(echo_server.address, "-c", "1", "-n", "1", "--json", "/dev/full")
    assert result.returncode == 1
    assert "messages/s" in result.stdout
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr
    too_long = str(tmp_path / ("x" * 300))
    result = load(echo_server.address, "-c", "1", "-n", "1", "--json", too_long)
    assert result.returncode == 2
    assert "File name too long" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# -- compare -------------------------------------------------------------------------------------


DEFAULT_BACKENDS = ["process", "thread", "pool", "selector", "coroutine", "gevent", "asyncio"]


@pytest.mark.slow
@pytest.mark.ci
def test_compare_all(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = run(
        *(
            "echoload",
            "compare",
            "-c",
            "100",
            "-d",
            "1s",
            "--warmup",
            "0",
            "--rounds",
            "2",
            "--engine",
            "epoll",
        ),
        *("--json", str(file)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    document = json.loads(file.read_text())
    by_name = {found["target"]: found for found in document["results"]}
    assert list(by_name) == DEFAULT_BACKENDS
    for name, found in by_name.items():
        assert found["backend"] == name
        assert found["handler"] == "echo"
        assert found["errors"] == {}
        assert found["verified"] > 0
        rates = found["throughput"]
        assert len(rates["rounds"]) == 2
        assert rates["min"] <= rates["median"] <= rates["max"]
        assert 1 < found["server"]["cpu_us_per_message"] < 1000
        assert found["server"]["peak_rss_bytes"] > 5e6
        assert isinstance(found["client_limited"], bool)
        assert name in result.stdout
    assert by_name["process"]["server"]["processes"] == 102  # itself, the fork server, children
    assert by_name["thread"]["server"]["threads"] == 101
    assert by_name["pool"]["connections_served"] == 64
    assert by_name["pool"]["starved"] == 36
    assert by_name["gevent"]["server"]["threads"] <= 2
    assert by_name["gevent"]["connections_served"] == 100
    # Progress, one line a round where there is no terminal, with the time left.
    assert re.search(r"^round 14/14 .* left$", result.stderr, re.MULTILINE)
    if len(document["environment"]["affinity"]) > 1:
        pinning = document["environment"]["pinning"]
        assert not set(pinning["server"]) & set(pinning["client"])


@pytest.mark.ci
def test_compare_plugins_and_upper(tmp_path: Path) -> None:
    plugin = "tests/broken/backends.py:BrokenThreads"  # whose transport is the right one
    words = ["-c", "4", "-d", "200ms", "--rounds", "1", "--handler", "upper", "--pin", "off"]
    words += ["--engine", "threads"]
    result = run("echoload", "compare", "--backends", f"{plugin},thread", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "BrokenThreads" in result.stdout


@pytest.mark.ci
def test_compare_finds_cross_talk() -> None:
    plugin = "tests/broken/backends.py:SharedBuffer"
    result = run(
        *("echoload", "compare", "--backends", plugin, "-c", "20"),
        *("-d", "500ms", "--rounds", "1"),
    )
    assert result.returncode == 4
    assert "foreign" in result.stdout


@pytest.mark.ci
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise echoserver.BootError('no boot today')", "no boot today"),
        ("raise RuntimeError", "RuntimeError"),
        pytest.param(
            "for connection in listener: connection.serve()\n        time.sleep(60)",
            "did not end within",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["does-not-boot", "dies", "does-not-end"],
)
def test_one_server_that_fails_costs_no_one_elses_figures(
    body: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "failing.py").write_text(
        "import threading, time\n"
        "import echoserver\n"
        "class Failing(echoserver.Backend):\n"
        "    def serve(self, listener, service):\n"
        f"        {body}\n"
    )
    file = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", "--backends", f"thread,{tmp_path}/failing.py:Failing"),
        # With this seed, `thread` is measured first.
        *("-c", "4", "-d", "200ms", "--rounds", "1", "--seed", "1", "--engine", "threads"),
        *("--json", str(file)),
    )
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert "thread" in result.stdout
    assert json.loads(file.read_text())["results"][0]["target"] == "thread"


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_shows_the_table_so_far(number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    process = subprocess.Popen(
        [
            *(command("echoload"), "compare", "-c", "20", "-d", "400ms", "--rounds", "50"),
            *("--engine", "threads", "-R", "500"),
            *("--backends", "thread,process", "--json", str(file)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "WHOSE": str(tmp_path)},
    )
    assert process.stderr is not None
    while not (seen := process.stderr.readline()).startswith("round 3/100"):
        assert seen, process.stderr.read()
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "messages/s" in out
    assert "thread" in out
    assert "Traceback" not in error
    assert json.loads(file.read_text())["results"]
    assert wire.eventually(lambda: not inspection.session(process.pid))
    # A server that was just being started ends by itself: the program it belonged to is gone.
    assert wire.eventually(lambda: not belonging_to(str(tmp_path)))


def belonging_to(owner: str) -> list[int]:
    """Return the processes whose environment says so."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"WHOSE={owner}".encode() in (
                (entry / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(entry.name))
    return found


@pytest.mark.ci
def test_killed_it_leaves_nothing_behind() -> None:
    process = subprocess.Popen(
        [command("echoload"), "compare", "-c", "20", "-d", "30s", "--backends", "process"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert wire.eventually(lambda: len(inspection.tree(process.pid)) > 20)
    everyone = inspection.tree(process.pid)[1:]
    process.kill()
    process.wait()
    assert wire.eventually(lambda: not any(one.is_running() for one in everyone))


@pytest.mark.ci
def test_a_slow_server_does_not_make_the_client_the_limit(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import threading, time\n"
        "import echoserver\n"
        "class Slow(echoserver.Backend):\n"
        "    def serve(self, listener, service):\n"
        "        service.make_handler = Sleepy\n"
        "        for connection in listener:\n"
        "            threading.Thread(target=connection.serve, daemon=True).start()\n"
        "        service.drain()\n"
        "class Sleepy(echoserver.Handler):\n"
        "    def receive(self, data):\n"
        "        yield echoserver.Sleep(0.05)\n"
        "        yield data\n"
    )
    file = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", "--backends", f"{tmp_path}/slow.py:Slow", "-c", "10"),
        *("-d", "1s", "--rounds", "1", "--json", str(file)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = one_result(file)
    assert found["client_limited"] is False
    assert "≥" not in result.stdout
    assert found["throughput"]["median"] < 1.1 * 10 / 0.05
    assert found["latency_us"]["p50"] >= 50_000
