"""What stands beside a server: metrics, access log, privileges, service managers, overload."""

import datetime as dt
import json
import os
import platform
import pwd
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

import echoserver
from clients.tls import Trust
from echoserver.conversation import certificates
from echoserver.monitoring.counters import Totals, Vitals
from echoserver.monitoring.scoreboard import Scoreboard
from tests.echoserver.test_cli import sentence
from tests.support import inspection, pace, wire
from tests.support.certificates import SERVERS
from tests.support.launching import await_listening, command, free_port, run, serving, task_limit

ROOT = os.geteuid() == 0
PACKAGE = Path(echoserver.__file__).parent
OPERATING = PACKAGE.parent / "docs" / "operating.md"


@contextmanager
def monitored(
    backend: str = "thread", **settings: Any
) -> Iterator[tuple[echoserver.SpawnedServer, str]]:
    with serving(backend, metrics="127.0.0.1:0", **settings) as server:
        port = inspection.events(server, "listening")[0]["metrics_port"]
        yield server, f"http://127.0.0.1:{port}"


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=wire.patience) as answer:  # noqa: S310 - http
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(base: str) -> dict[str, float]:
    """Return the sum of each metric over workers; with a label, as ``name/label``."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(fetch(f"{base}/metrics")[1]):
        for sample in family.samples:
            rest = [value for key, value in sample.labels.items() if key != "worker"]
            name = "/".join([sample.name.removeprefix("echoserver_"), *rest])
            found[name] = found.get(name, 0) + sample.value
    return found


# -- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [None, 2])
def test_metrics_tell_what_happened(exemplar: str, processes: int | None) -> None:
    with monitored(exemplar, workers=processes, deny="127.0.0.2") as (server, base):
        for _ in range(5):
            with wire.connect(server.address) as sock:
                assert wire.ask(sock, b"hello") == b"hello"
                assert wire.finish(sock) == b""
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"stays") == b"stays"
            assert wire.read_to_end(wire.connect(server.address, source="127.0.0.2")) == b""
            expected = {
                "connections_total": 6.0,
                "connections_open": 1.0,
                "connections_rejected_total/denied": 1.0,
                "ready": 1.0,
                "draining": 0.0,
            }
            assert wire.eventually(lambda: expected.items() <= metrics(base).items()), metrics(base)
        assert wire.eventually(lambda: metrics(base)["bytes_total/in"] == 30)
        assert metrics(base)["bytes_total/out"] == 30
        assert wire.eventually(lambda: metrics(base)["connections_open"] == 0)
        reset = wire.connect(server.address)
        assert wire.ask(reset, b"hello") == b"hello"
        wire.reset(reset)
        assert wire.eventually(lambda: metrics(base)["connections_ended_total/reset"] == 1)
        page = fetch(f"{base}/metrics")[1]
        assert "127.0.0.1" not in page, "no client has a line of its own"
        assert server.stop() == 0


def test_the_documented_metrics_are_those_there_are() -> None:
    with monitored(tls_cert=SERVERS.issue()) as (_, base):
        page = fetch(f"{base}/metrics")[1]
    said = set(re.findall(r"`(echoserver_[a-z_]+)`", OPERATING.read_text()))
    assert said == set(re.findall(r"^(echoserver_[a-z_]+?)(?:\{| )", page, re.MULTILINE))


def test_the_documented_events_and_outcomes_are_those_there_are() -> None:
    sources = "".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    _, _, rest = OPERATING.read_text().partition("| outcome |")
    outcomes, _, rest = rest.partition("| event |")
    events = rest.partition("## ")[0]
    for table in (outcomes, events):
        named = re.findall(
            r"`([a-z_]+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
        )
        assert len(named) > 9
        assert [one for one in named if f'"{one}"' not in sources] == []


@pytest.mark.ci
def test_bytes_are_counted_while_connections_are_open() -> None:
    with monitored("selector") as (server, base), wire.connect(server.address) as sock:
        assert wire.ask(sock, b"hello") == b"hello"
        assert wire.eventually(lambda: metrics(base)["bytes_total/out"] == 5)
        assert wire.ask(sock, b"again") == b"again"
        assert wire.eventually(lambda: metrics(base)["bytes_total/in"] == 10)
        assert wire.finish(sock) == b""
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["bytes_in"] == 10, "nothing is counted twice"


def test_counters_never_go_back_when_a_worker_dies() -> None:
    with monitored(workers=2) as (server, base):
        for _ in range(20):
            assert wire.served(server.address)
        assert wire.eventually(lambda: metrics(base)["connections_total"] == 20)
        victim = inspection.events(server, "worker_started")[0]["worker_pid"]
        os.kill(victim, signal.SIGKILL)
        seen = [metrics(base)["connections_total"]]
        assert wire.eventually(lambda: len(inspection.events(server, "worker_serves")) == 3)
        seen += [metrics(base)["connections_total"] for _ in range(5)]
        assert seen == sorted(seen)
        assert seen[-1] == 20


@pytest.mark.parametrize("processes", [None, 2])
def test_every_connection_that_has_ended_is_counted_by_its_reason(
    exemplar: str, processes: int | None, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from echoserver import Handler\n\n\nclass Fails(Handler):\n"
        "    def receive(self, data):\n        return data if data != b'fail' else None\n"
    )
    with monitored(exemplar, handler=f"{plugin}:Fails", idle_timeout=0.3, workers=processes) as (
        server,
        base,
    ):
        for _ in range(3):
            assert wire.served(server.address)
        assert wire.read_to_end(wire.connect(server.address)) == b""
        failing = wire.connect(server.address)
        failing.sendall(b"fail")
        assert wire.read_to_end(failing) == b""
        reset = wire.connect(server.address)
        assert wire.ask(reset, b"hello") == b"hello"
        wire.reset(reset)
        expected = {"eof": 3.0, "idle_timeout": 1.0, "handler_error": 1.0, "reset": 1.0}

        def ended() -> dict[str, float]:
            return {
                name.rpartition("/")[2]: count
                for name, count in metrics(base).items()
                if name.startswith("connections_ended_total/") and count
            }

        assert wire.eventually(lambda: ended() == expected), ended()
        assert metrics(base)["connections_total"] == 6


def test_reloads_and_restarts_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("")
    with monitored("selector", workers=1, arguments=["--config", str(file)]) as (server, base):
        first = metrics(base)
        assert first["last_reload_successful"] == 1
        assert 0 <= first["last_reload_timestamp_seconds"] - first["start_time_seconds"] < 60
        assert first["worker_restarts_total"] == 0
        file.write_text("nonsense = 1")
        server.process.send_signal(signal.SIGHUP)
        assert wire.eventually(lambda: metrics(base)["last_reload_successful"] == 0)
        failed = metrics(base)["last_reload_timestamp_seconds"]
        assert failed > first["last_reload_timestamp_seconds"]
        file.write_text("idle-timeout = 7")
        server.process.send_signal(signal.SIGHUP)
        assert wire.eventually(lambda: metrics(base)["last_reload_successful"] == 1)
        assert metrics(base)["last_reload_timestamp_seconds"] > failed
        assert metrics(base)["worker_restarts_total"] == 0, "it was replaced"
        os.kill(inspection.events(server, "worker_started")[-1]["worker_pid"], signal.SIGKILL)
        assert wire.eventually(lambda: metrics(base)["worker_restarts_total"] == 1)


def test_what_serves_is_told() -> None:
    with monitored("selector") as (_, base):
        page = fetch(f"{base}/metrics")[1]
        assert re.search(
            rf'^echoserver_build_info{{.*version="{re.escape(echoserver.__version__)}"}} 1.0$',
            page,
            re.MULTILINE,
        )
        assert f'python="{platform.python_version()}"' in page
        assert "certificate" not in page


def test_the_certificates_expiry_follows_a_reload(tmp_path: Path) -> None:
    cert = tmp_path / "server.pem"
    cert.write_bytes(Path(SERVERS.issue()).read_bytes())
    with monitored("selector", tls_cert=cert) as (server, base):
        name = "certificate_expiry_timestamp_seconds"
        assert metrics(base)[name] == _expiry(cert)
        cert.write_bytes(Path(SERVERS.issue(expired=True)).read_bytes())
        server.process.send_signal(signal.SIGHUP)
        assert wire.eventually(lambda: metrics(base)[name] == _expiry(cert))
        assert metrics(base)[name] < time.time()


def _expiry(cert: Path) -> float:
    found = x509.load_pem_x509_certificate(cert.read_bytes())
    return found.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("year", [2049, 2050, 9999])
def test_a_certificates_expiry_in_either_form(year: int) -> None:
    """Until 2049 a year has two digits, from 2050 on four (RFC 5280)."""
    until = dt.datetime(year, 12, 31, 23, 59, 58, tzinfo=dt.UTC)
    issued = trustme.CA().issue_cert("localhost", not_after=until)
    pem = issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
    assert certificates.expiry(pem) == until.timestamp()
    with pytest.raises(ValueError, match="PEM"):
        certificates.expiry(issued.private_key_pem.bytes())


def test_health_and_readiness() -> None:
    with monitored("selector") as (server, base):
        assert fetch(f"{base}/healthz") == (200, "ok\n")
        assert fetch(f"{base}/readyz") == (200, "ready\n")
        assert fetch(f"{base}/else")[0] == 404
        deaf = wire.connect(server.address, receive_buffer=4096)
        wire.push_until_blocked(deaf, wire.content(16 << 20))
        server.process.send_signal(signal.SIGTERM)
        assert wire.eventually(lambda: fetch(f"{base}/readyz") == (503, "not ready\n"))
        assert fetch(f"{base}/healthz") == (200, "ok\n"), "the metrics stop last"
        assert metrics(base)["draining"] == 1
        wire.read_to_end(deaf)
        assert server.wait() == 0
        with pytest.raises(OSError, match="refused"):
            fetch(f"{base}/healthz")


def test_a_metrics_port_that_is_taken_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with serving(metrics=f"127.0.0.1:{port}") as server:
            assert wire.served(server.address)
            told = inspection.events(server, "metrics_unavailable")
            assert [event["reason"] for event in told] == ["Address already in use"]
            other.close()
            assert wire.eventually(lambda: _answers(f"http://127.0.0.1:{port}/healthz"))


def _answers(url: str) -> bool:
    with suppress(OSError):
        return fetch(url)[0] == 200
    return False


def test_scrapers_that_hang_hold_nobody_up() -> None:
    with monitored() as (server, base):
        port = int(base.rpartition(":")[2])
        hanging = [wire.connect(("127.0.0.1", port)) for _ in range(60)]
        for sock in hanging[::2]:
            sock.sendall(b"GET /metrics HTTP/1.1\r\n")
        for _ in range(20):
            assert wire.served(server.address)
        assert wire.eventually(lambda: _answers(f"{base}/healthz")), "they time out"
        begun = time.monotonic()
        assert server.stop() == 0
        assert pace.within(time.monotonic() - begun, 5)


@pytest.mark.parametrize(("model", "processes"), [("thread", None), ("process", 2)])
def test_helpers_that_die_are_started_again(
    model: str, processes: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "access.log"
    with monitored(model, workers=processes, access_log=file) as (server, base):
        assert wire.served(server.address)
        workers = {event["worker_pid"] for event in inspection.events(server, "worker_started")}
        children = psutil.Process(server.pid).children()
        helpers = [one for one in children if one.pid not in workers]
        assert len(helpers) == 2
        assert wire.eventually(lambda: len(file.read_text().splitlines()) == 1)
        for helper in helpers:
            helper.suspend()
        assert wire.served(server.address), "and its line waits in the pipe"
        for helper in helpers:
            helper.kill()
        both = wire.eventually(lambda: len(inspection.events(server, "helper_started")) == 2)
        assert both, server.log
        told = inspection.events(server, "helper_died")
        assert {event["what"] for event in told} == {"access_log", "metrics"}
        assert {event["helper_pid"] for event in told} == {one.pid for one in helpers}
        assert wire.eventually(lambda: _answers(f"{base}/healthz"))
        assert wire.eventually(lambda: metrics(base)["connections_total"] == 2)
        assert wire.eventually(lambda: len(file.read_text().splitlines()) == 2)
        others = [one for one in psutil.Process(server.pid).children() if one.pid not in workers]
        for helper in others:
            helper.suspend()
        assert wire.served(server.address)
        for helper in others:
            helper.kill()  # and at once comes the end
        assert server.stop() == 0
    assert len(file.read_text().splitlines()) == 3
    assert not any(one.is_running() for one in helpers), "and none is a zombie"


@pytest.mark.parametrize("address", ["9100", "127.0.0.1:", ":9100", "127.0.0.1:65536", "x:-1"])
def test_a_metrics_address_that_is_none(address: str) -> None:
    result = run("echoserver", "--port", "0", "--metrics", address)
    assert result.returncode == 2
    assert "--metrics must be HOST:PORT" in sentence(result)


def test_balancers_probe_with_head() -> None:
    with monitored() as (_, base):
        asked = urllib.request.Request(f"{base}/readyz", method="HEAD")  # noqa: S310 - http
        with urllib.request.urlopen(asked, timeout=wire.patience) as answer:  # noqa: S310 - http
            assert (answer.status, answer.read()) == (200, b"")


def test_slow_scrapers_keep_nobody_out() -> None:
    with monitored() as (_, base):
        port = int(base.rpartition(":")[2])
        for _ in range(40):
            sock = wire.connect(("127.0.0.1", port))
            sock.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        assert fetch(f"{base}/healthz") == (200, "ok\n")


def test_metrics_of_one_client_at_a_time() -> None:
    with monitored("iterative") as (server, base), wire.connect(server.address) as sock:
        assert wire.ask(sock, b"hello") == b"hello"
        assert metrics(base)["connections_open"] == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "a" * 70])
def test_a_host_for_metrics_that_is_none(host: str) -> None:
    result = run("echoserver", "--port", "0", "--metrics", f"{host}:9100")
    assert result.returncode == 3
    assert f"--metrics: cannot resolve {host}:9100" in sentence(result)


def test_the_servers_own_port_is_not_for_metrics() -> None:
    result = run("echoserver", "--port", "7199", "--metrics", "127.0.0.1:7199")
    assert result.returncode == 2
    assert "--metrics is the server's own port" in sentence(result)


def test_a_port_where_nothing_listens_is_not_announced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(metrics=f"127.0.0.1:{port}") as server:
            assert inspection.events(server, "metrics_unavailable")
            assert "metrics_port" not in inspection.events(server, "listening")[0]


def test_no_reader_sees_half_of_what_is_noted() -> None:
    """A counter that was 0 for a moment would be a restart to its reader."""
    scoreboard = Scoreboard(1, 1)
    place = scoreboard.reserve(1)
    busy = Totals(connections=1, bytes_in=1, bytes_out=1, resets=1)
    scoreboard.write(place, Vitals(), busy)
    if (pid := os.fork()) == 0:
        for _ in range(2_000_000):  # until it is killed, or at most half a minute
            scoreboard.write(place, Vitals(), busy)
        os._exit(0)
    try:
        for _ in range(20_000):
            assert scoreboard.read(place).totals == busy
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# -- access log ----------------------------------------------------------------------------------


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


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
        subprocess.Popen(
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


def test_the_access_log_on_standard_output() -> None:
    port = free_port()
    words = [command("echoserver"), "--port", str(port), "--access-log", "-"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        address = await_listening(port, process)
        assert wire.served(address)
        process.terminate()
        out, _ = process.communicate(timeout=20)
    assert len(b"SERVED?") in {json.loads(line)["bytes_in"] for line in out.splitlines()}


# -- privileges ----------------------------------------------------------------------------------


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("processes", [None, 2])
def test_privileges_are_given_up(exemplar: str, processes: int | None, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    if exemplar in {"process", "gevent"} and not _readable_for_all(Path(sys.executable).resolve()):
        pytest.skip("this Python is readable for root alone, and some of it is needed later")
    settings: dict[str, Any] = {"metrics": "127.0.0.1:0", "access_log": tmp_path / "access.log"}
    settings |= {"user": "nobody", "workers": processes, "port": free_port(low=True)}
    with serving(exemplar, **settings) as server:
        assert wire.served(server.address)
        inspection.settled(server.pid)  # of `process`, the child that served has gone
        processes_ = inspection.tree(server.pid)
        assert len(processes_) >= 3
        for one in processes_:
            status = Path(f"/proc/{one.pid}/status").read_text()
            held = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert held["Uid"].split() == [str(nobody.pw_uid)] * 4
            assert held["Gid"].split() == [str(nobody.pw_gid)] * 4
            assert "0" not in held["Groups"].split()
            assert {int(held[f"Cap{which}"], 16) for which in ("Prm", "Eff", "Inh", "Amb")} == {0}
            assert held["NoNewPrivs"] == "1"
        assert server.stop() == 0


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A folder of the user nobody's, in one that everybody may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name, "log")
        folder.mkdir()
        shutil.chown(folder, "nobody")
        yield folder


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_log_folder_gives_nothing_away(nobodys: Path, *, there: bool) -> None:
    secret = nobodys.parent / "secret"
    if there:
        secret.write_text("root's\n")
        secret.chmod(0o600)
    (nobodys / "access.log").symlink_to(secret)
    said = ("--user", "nobody", "--access-log", str(nobodys / "access.log"))
    result = run("echoserver", "--port", "0", *said, timeout=20)
    assert result.returncode == 3
    assert "--access-log: cannot write" in sentence(result)
    assert secret.exists() == there
    if there:
        assert (secret.stat().st_uid, secret.read_text()) == (0, "root's\n")


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
def test_the_access_log_is_made_by_whom_the_server_becomes(nobodys: Path) -> None:
    file = nobodys / "access.log"
    with serving(user="nobody", access_log=file) as server:
        assert wire.served(server.address)
        assert server.stop() == 0
    assert file.stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert lines(file)


def _readable_for_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in [path, *path.parents])


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
def test_a_key_that_only_root_may_read_outlives_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "server.pem"
    shutil.copy(SERVERS.issue(), file)
    file.chmod(0o600)
    with serving(user="nobody", tls_cert=file) as server:
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: inspection.events(server, "reloaded"))
        told = inspection.events(server, "certificate_not_reloaded")
        assert [one["reason"] for one in told] == [
            f"cannot read the TLS file {file}: Permission denied"
        ]
        sock = wire.Secured(wire.connect(server.address), Trust(SERVERS.cert))
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--user", "no-such-user"], 2, "--user: this system knows no 'no-such-user'"),
        (["--user", "root"], 2, "root is what is to be given up"),
        (["--user", "0"], 2, "root is what is to be given up"),
        (
            ["--user", "nobody", "--group", "no-such-group"],
            2,
            "this system knows no 'no-such-group'",
        ),
        (["--user", "4123456"], 2, "has no entry; add --group"),
        (["--group", "nogroup"], 2, "--group alone leaves root in place; add --user"),
    ],
)
def test_whom_nobody_can_become(words: list[str], code: int, said: str) -> None:
    result = run("echoserver", "--port", "0", *words)
    assert result.returncode == code
    assert said in sentence(result)


@pytest.mark.skipif(not ROOT, reason="it takes root to be an ordinary user here")
def test_who_is_not_root_becomes_nobody_else() -> None:
    script = """
import importlib, os
from echoserver.system import privileges
from echoserver.config import Config
for module in privileges._NEEDED_LATER:  # this Python may be root's alone
    importlib.import_module(module)
os.setgroups([])
os.setresgid(1234, 1234, 1234)
os.setresuid(1234, 1234, 1234)
privileges.Identity.of("4321", "4321", str).assume()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "that takes root" in done.stderr


# -- service managers ----------------------------------------------------------------------------


class Manager:
    """What listens where a service manager does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        wire.opened.append(self.sock)
        self.sock.bind(str(self.path))
        self.sock.settimeout(wire.patience)

    def forget(self) -> None:
        """Take no notice of what was said so far."""
        while select.select([self.sock], [], [], 0)[0]:
            self.sock.recv(4096)

    def hears(self, said: str) -> bool:
        """Tell whether something is said, after what else may be."""
        while True:
            try:
                words = self.sock.recv(4096).decode()
            except TimeoutError:
                return False
            if said in words.splitlines():
                return True


@contextmanager
def managed(
    *words: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], wire.Address]]:
    port = free_port()
    with subprocess.Popen(
        [command("echoserver"), "--port", str(port), *words],
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process, await_listening(port, process)
        finally:
            process.kill()


@pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_service_manager_hears_how_it_goes(words: tuple[str, ...], tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
    with managed(*words, **environment) as (process, address):
        assert manager.hears("READY=1")
        assert wire.served(address)
        assert manager.hears("WATCHDOG=1")
        assert manager.hears("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        assert manager.hears("RELOADING=1")
        assert manager.hears("READY=1")
        process.terminate()
        assert manager.hears("STOPPING=1")
        assert process.wait(20) == 0


def test_the_watchdog_is_fed_when_clients_have_all_descriptors(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
    few = ("--backend", "selector", "--max-connections", "1000")
    with managed(*few, **environment) as (process, address):
        assert manager.hears("READY=1")
        limit = psutil.Process(process.pid).num_fds() + 20
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        for _ in range(40):
            wire.connect(address)
        assert wire.eventually(lambda: psutil.Process(process.pid).num_fds() >= limit)
        manager.forget()
        assert all(manager.hears("WATCHDOG=1") for _ in range(3))


@pytest.mark.parametrize("usec", ["", "x", "-1"])
def test_a_watchdog_that_is_none(usec: str, tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    with managed(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC=usec) as (_, address):
        assert manager.hears("READY=1")
        assert wire.served(address)


def test_a_manager_that_has_gone_is_not_missed(tmp_path: Path) -> None:
    with managed(NOTIFY_SOCKET=str(tmp_path / "nobody")) as (process, address):
        assert wire.served(address)
        process.terminate()
        assert process.wait(20) == 0


HAND_OVER = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", 0)) if sys.argv[1] == "tcp" else socket.socket(
    socket.AF_INET, socket.SOCK_DGRAM)
print(sock.getsockname()[1], flush=True)
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_socket_that_is_handed_over(words: tuple[str, ...]) -> None:
    given = [sys.executable, "-c", HAND_OVER, "tcp", "1", command("echoserver"), *words]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        assert wire.served(address)  # it could connect before the server had begun
        with wire.connect(address) as sock:
            assert wire.ask(sock, b"hello") == b"hello"
            process.terminate()
            assert wire.read_to_end(sock) == b""
        assert process.wait(20) == 0


def test_what_has_no_effect_on_it_is_said() -> None:
    given = [sys.executable, "-c", HAND_OVER, "tcp", "1", command("echoserver"), "--port", "5555"]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert wire.served(("127.0.0.1", int(process.stdout.readline())))
        process.terminate()
        assert b"--port has no effect on a socket that was handed over" in process.stderr.read()


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [("udp", "1", "does not listen for TCP"), ("tcp", "2", "descriptor 4 that was handed over")],
)
def test_a_socket_that_is_of_no_use(kind: str, count: str, said: str) -> None:
    given = [sys.executable, "-c", HAND_OVER, kind, count, command("echoserver")]
    done = subprocess.run(given, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3
    assert said in done.stderr


@pytest.mark.parametrize(
    "words",
    [(), ("--workers", "2"), ("--overload", "reject")],
    ids=["alone", "workers", "reject"],
)
def test_who_waits_at_a_socket_that_stays_is_not_sent_away(words: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:

        def start() -> subprocess.Popen[bytes]:
            script = 'exec 3<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
            given = [command("echoserver"), "--max-connections", "1", *words]
            return subprocess.Popen(
                ["bash", "-c", script, str(ours.fileno()), *given],
                pass_fds=[ours.fileno()],
                stderr=subprocess.DEVNULL,
            )

        process = start()
        try:
            first = wire.connect(ours.getsockname())
            assert wire.ask(first, b"first") == b"first"
            # So that they come before it can turn them away, and it drains before it sees them.
            stopped = "reject" in words
            if stopped:
                process.send_signal(signal.SIGSTOP)
                assert inspection.stopped(process.pid)
            waiting = [wire.connect(ours.getsockname()) for _ in range(1 if stopped else 5)]
            for sock in waiting:
                sock.sendall(b"hello")
            process.terminate()
            process.send_signal(signal.SIGCONT)
            assert wire.read_to_end(first) == b""
            first.close()
            assert process.wait(20) == 0
            process = start()
            for sock in waiting:
                assert wire.read_exactly(sock, 5) == b"hello"
                sock.close()
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="no systemd-socket-activate"
)
def test_systemd_hands_its_socket_over() -> None:
    port = free_port()
    words = ["systemd-socket-activate", "--listen", f"127.0.0.1:{port}", command("echoserver")]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            # It starts the server in its own place when the first client comes.
            assert wire.eventually(lambda: _served_at(port))
            assert wire.served(("127.0.0.1", port))
        finally:
            process.terminate()
        assert process.wait(20) == 0


def _served_at(port: int) -> bool:
    with suppress(ConnectionRefusedError):
        return wire.served(("127.0.0.1", port))
    return False


def _namespaces() -> bool:
    tried = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return all(map(shutil.which, ("unshare", "nsenter"))) and not (
        subprocess.run(tried, capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not _namespaces(), reason="cannot make a PID namespace")
@pytest.mark.parametrize("words", [(), ("--backend", "process"), ("--workers", "2")])
def test_process_1_collects_strays(words: tuple[str, ...]) -> None:
    """In a container, an orphan becomes a child of process 1."""
    port = free_port()
    given = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    given += [command("echoserver"), "--port", str(port), *words]
    with subprocess.Popen(given, stderr=subprocess.DEVNULL) as process:
        try:
            address = await_listening(port, process)
            first = psutil.Process(process.pid).children()[0]
            into = ["nsenter", "--target", str(first.pid), "--pid", "--mount"]
            orphan = "sleep 300 >/dev/null 2>&1 &"
            subprocess.run([*into, "sh", "-c", orphan], check=True, timeout=20)
            assert wire.eventually(lambda: _sleeping(first))
            (stray,) = _sleeping(first)
            stray.kill()
            assert wire.eventually(lambda: not psutil.pid_exists(stray.pid)), "a zombie remains"
            assert wire.served(address)
            first.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def _sleeping(parent: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == "sleep":
                found.append(child)
    return found


# -- overload ------------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.parametrize("processes", [None, 2])
def test_the_most_silent_make_room(exemplar: str, processes: int | None) -> None:
    if exemplar == "iterative":
        pytest.skip("it serves one client at a time, and accepts none meanwhile")
    with serving(exemplar, max_connections=4, overload="shed-idle", workers=processes) as server:
        socks = [wire.connect(server.address) for _ in range(4)]
        assert all(wire.ask(sock, b"hello") == b"hello" for sock in socks)
        newcomer = wire.connect(server.address)
        newcomer.sendall(b"room?")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:  # two of them talk on
            assert wire.ask(socks[1], b"talk") == b"talk"
            assert wire.ask(socks[3], b"talk") == b"talk"
            time.sleep(0.05)
        assert wire.read_exactly(newcomer, 5) == b"room?"
        ended = [sock for sock in socks if _has_ended(sock)]
        # Of two workers, either may make room.
        assert len(ended) in ({1} if processes is None else {1, 2})
        assert socks[1] not in ended
        assert socks[3] not in ended
        for sock in ended:
            assert wire.read_to_end(sock) == b""
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["shed"] == len(ended)


def _has_ended(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0]) and sock.recv(1, socket.MSG_PEEK) == b""


@pytest.mark.ci
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("process", marks=pytest.mark.ci),
        "selector",
        pytest.param("thread", marks=pytest.mark.ci),
        pytest.param("gevent", marks=pytest.mark.ci),
    ],
)
def test_who_never_says_hello_makes_room(model: str) -> None:
    settings = {"tls_cert": SERVERS.issue(), "handshake_timeout": 60}
    with serving(model, max_connections=3, overload="shed-idle", **settings) as server:
        stalled = [wire.connect(server.address) for _ in range(3)]
        newcomer = wire.Secured(wire.connect(server.address), Trust(SERVERS.cert))
        newcomer.sendall(b"room?")
        assert newcomer.recv(5) == b"room?"
        newcomer.close()
        assert any(_has_ended(sock) for sock in stalled)
        assert server.stop() == 0
        assert server.stopped is not None
        assert 1 <= server.stopped["shed"] <= 3  # some take longer to leave than others


@pytest.mark.ci
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("selector", marks=pytest.mark.ci),
        pytest.param("gevent", marks=pytest.mark.ci),
        "thread",
    ],
)
def test_who_waits_for_an_answer_is_not_shed(model: str) -> None:
    sleeping = {"handler": "sleep", "handler_option": {"seconds": 3}}
    with serving(model, max_connections=2, overload="shed-idle", **sleeping) as server:
        asks, idles = wire.connect(server.address), wire.connect(server.address)
        asks.sendall(b"slow")
        newcomer = wire.connect(server.address)
        assert wire.read_to_end(idles) == b""
        assert wire.read_exactly(asks, 4) == b"slow"
        # Nobody is owed anything now, and everybody makes room in turn, the most silent first.
        another, one_more = wire.connect(server.address), wire.connect(server.address)
        assert wire.read_to_end(newcomer) == b""
        assert wire.eventually(lambda: _has_ended(asks) or _has_ended(another))
        another.close()
        one_more.close()


@pytest.mark.ci
def test_who_is_to_make_room_has_the_time_its_answer_takes() -> None:
    """Of `process`, only the child knows whether it owes anything."""
    sleeping = {"handler": "sleep", "handler_option": {"seconds": 4}, "drain_timeout": 1}
    with serving("process", max_connections=1, overload="shed-idle", **sleeping) as server:
        asks = wire.connect(server.address)
        asks.sendall(b"slow")
        newcomer = wire.connect(server.address)
        newcomer.sendall(b"room?")
        assert wire.read_to_end(asks) == b"slow"
        asks.close()
        assert wire.read_exactly(newcomer, 5) == b"room?"
        newcomer.close()
        assert server.stop() == 0
        assert server.stopped is not None
        assert (server.stopped["shed"], server.stopped["cut"]) == (1, 0)


@pytest.mark.ci
def test_who_is_owed_something_is_not_shed() -> None:
    with serving("selector", max_connections=1, overload="shed-idle") as server:
        deaf = wire.connect(server.address, receive_buffer=4096)
        data = wire.content(4 << 20)
        sent = wire.push_until_blocked(deaf, data)
        newcomer = wire.connect(server.address)
        newcomer.sendall(b"room?")
        newcomer.settimeout(2.5)
        with pytest.raises(TimeoutError):
            newcomer.recv(5)
        deaf.shutdown(socket.SHUT_WR)
        assert not wire.difference(wire.read_to_end(deaf), data[:sent])


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_memory_is_bounded_by_the_limit(tls: bool, exemplar: str) -> None:  # noqa: FBT001 - parametrised
    """Peers that read nothing, as many as there may be: see docs/operating.md.

    They send in turns, so all of them are served at the same time, and what each once needed for
    a moment adds up.
    """
    count, data = 24 if exemplar == "process" else 100, wire.content(1 << 16)
    settings: dict[str, Any] = {"tls_cert": SERVERS.issue()} if tls else {}
    if exemplar == "pool":
        settings["pool_size"] = count
    with serving(exemplar, max_connections=count, **settings) as server:
        before = _memory(server.pid)
        wire.trust = Trust(SERVERS.cert) if tls else None
        try:
            sending = [wire.connect(server.address, receive_buffer=4096) for _ in range(count)]
            for sock in sending:
                sock.settimeout(0.05)
            while sending:
                sending = [sock for sock in sending if _takes(sock, data)]
        finally:
            wire.trust = None
        each = (_memory(server.pid) - before) / count
        bound = {"process": 1024} if not tls else {"process": 2048}
        assert each / 1024 < bound.get(exemplar, 512 if tls else 160), (
            f"{each / 1024:.0f} KiB for each"
        )


def _takes(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.sendall(data)
    except (TimeoutError, ConnectionError):
        return False
    return True


def _memory(pid: int) -> int:
    """Return what a server's processes hold that is theirs alone."""
    total = 0
    for one in inspection.tree(pid):
        with suppress(psutil.Error):
            total += one.memory_full_info().uss
    return total
