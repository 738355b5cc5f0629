"""What monitoring reads: metrics, health, readiness."""

import datetime as dt
import os
import platform
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import trustme
from cryptography import x509

import echoserver
from echoserver.conversation import certificates
from echoserver.monitoring.counters import Totals, Vitals
from echoserver.monitoring.scoreboard import Scoreboard
from tests.echoserver.test_cli import sentence
from tests.support import inspection, pace, wire
from tests.support.certificates import SERVERS
from tests.support.launching import run, serving
from tests.support.monitoring import fetch, metrics, monitored

PACKAGE = Path(echoserver.__file__).parent
OPERATING = PACKAGE.parent / "docs" / "operating.md"


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


def _stop(processes: list[psutil.Process]) -> None:
    """Stop them, and wait until they are: until then, one may still take what has come."""
    for one in processes:
        one.suspend()
    assert all(inspection.stopped(one.pid) for one in processes)


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
        _stop(helpers)
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
        _stop(others)
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
