"""Connections that do not last: what the load clients do then, count, and call it; and headers."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import echoserver
from clients import LoadResult, Workload
from clients.address import format_address
from clients.proxy_header import local_header
from echoserver.admission.proxy_protocol import encode, parse
from loadtest.load.client_limit import judge
from tests.clients.test_engines import ENGINES, carry_out
from tests.support import wire
from tests.support.certificates import SERVERS
from tests.support.launching import free_port, run
from tests.support.misbehaving import accepting
from tests.support.misbehaving import server as misbehaving


@contextmanager
def ends_after(messages: int) -> Iterator[wire.Address]:
    """Serve so many messages of 64 bytes on each connection, then end it in peace."""

    def converse(sock: socket.socket, _number: int) -> None:
        with sock:
            for _ in range(messages):
                data = b""
                while len(data) < 64:
                    if not (piece := sock.recv(64 - len(data))):
                        return
                    data += piece
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    with accepting(converse) as address:
        yield address


def test_a_connection_that_is_ended_in_a_pause_is_no_error(engine: str) -> None:
    with ends_after(3) as address:
        result = carry_out(engine, address, connections=4, duration=0.6, rate=80.0, timeout=5.0)
    # On a busy machine, the next message may have been due before the end was seen.
    assert set(result.errors) <= {"closed"}
    assert result.ended_idle == 4 - result.errors["closed"] > 0
    assert (result.gone, result.verified) == (4, 12)
    assert result.dropped == result.unsent == 48 - 12 - result.errors["closed"]
    assert result.reconnects == 0


def test_it_is_made_again_where_that_is_wanted(engine: str) -> None:
    with ends_after(3) as address:
        result = carry_out(
            engine, address, connections=4, duration=0.6, rate=80.0, timeout=5.0, reconnect=True
        )
    assert set(result.errors) <= {"closed"}
    assert result.verified + result.drained + result.dropped == 48
    # Of twelve messages each, every third is a connection's last; nothing follows the twelfth.
    assert 12 <= result.ended_idle + result.errors["closed"] <= 16
    assert result.ended_idle > 0
    assert result.reconnects == result.recovery.get_total_count() == 12


@pytest.mark.parametrize("options", [{}, {"pipeline": 4}, {"think": "1ms"}], ids=str)
@pytest.mark.parametrize("hard", [True, False], ids=["reset", "closed"])
def test_what_was_not_answered_is_sent_again(
    engine: str, options: dict[str, Any], *, hard: bool
) -> None:
    """The server breaks two connections, whatever was sent on them just then."""
    pieces = itertools.count()

    def breaks(data: bytes, _number: int) -> bytes | None:
        return None if next(pieces) in {7, 15} else data

    workload = {"connections": 5, "duration": None, "messages": 100, "timeout": 20.0} | options
    with misbehaving(breaks, hard=hard) as address:
        result = carry_out(engine, address, reconnect=True, **workload)
    # Where something was still on its way to it, even the server that ends in peace resets.
    assert set(result.errors) <= {"reset", "closed"}, "lost with something owed, it is an error"
    assert 1 <= result.errors.total() == result.reconnects <= 2
    assert (result.verified, result.gone) == (100, 0)


def echoing(port: int, until: threading.Event) -> None:
    """Serve on a port until told to end, and reset everybody then."""
    socks = []
    with socket.create_server(("127.0.0.1", port), backlog=100) as listener:
        listener.settimeout(0.01)
        while not until.is_set():
            with suppress(TimeoutError):
                sock, _ = listener.accept()
                sock.settimeout(None)
                socks.append(sock)
                threading.Thread(target=echo, args=(sock,), daemon=True).start()
    for sock in socks:
        wire.reset_on_close(sock)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RD)
        sock.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def echo(sock: socket.socket) -> None:
    with suppress(OSError):
        while data := sock.recv(65536):
            sock.sendall(data)


def test_it_tries_until_there_is_a_server_again_and_says_how_long_that_took(engine: str) -> None:
    port, first, second = free_port(), threading.Event(), threading.Event()
    servers = [threading.Thread(target=echoing, args=(port, end)) for end in (first, second)]
    servers[0].start()
    assert wire.eventually(lambda: listens(port))
    load = ENGINES[engine](
        Workload("127.0.0.1", port, connections=3, duration=1.5, rate=60.0, reconnect=True)
    )
    load.connect()
    load.start()

    def restart() -> None:
        time.sleep(0.3)  # into the run
        first.set()
        servers[0].join()
        time.sleep(0.4)  # without a server: being refused meanwhile is what is tested
        servers[1].start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    load.wait()
    result = load.finish()
    restarting.join()
    second.set()
    servers[1].join()
    assert set(result.errors) <= {"reset", "closed"}, "to be refused is the same loss"
    assert result.reconnects == 3
    assert 0.35 < result.recovery.get_min_value() / 1e6 < 1.2
    # Latency counts from when messages were due: those of the outage waited for its end.
    assert result.latency.get_max_value() / 1e6 > 0.3
    assert result.gone == 0


def test_it_gives_up_after_the_timeout(engine: str) -> None:
    port, end = free_port(), threading.Event()
    server = threading.Thread(target=echoing, args=(port, end))
    server.start()
    assert wire.eventually(lambda: listens(port))
    load = ENGINES[engine](
        Workload(
            "127.0.0.1",
            port,
            connections=2,
            duration=None,
            messages=100_000_000,
            timeout=0.4,
            reconnect=True,
        )
    )
    load.connect()
    load.start()
    end.set()
    load.wait()  # for ever, if it did not
    result = load.finish()
    server.join()
    assert result.errors["refused"] == 2
    assert result.gone == 2


def test_a_client_without_connections_is_not_at_its_limit() -> None:
    result = LoadResult(verified=100, seconds=1.0, gone=6, dropped=900, unsent=900)
    for number in range(1, 101):
        result.latency.record_value(number * 100)
        result.lag.record_value(number * 100)
    workload = Workload("", 0, connections=10, rate=1000.0, duration=1.0)

    def limit() -> bool:
        return bool(
            judge(
                result,
                workload,
                client_share=0.95,
                server_share=0.1,
                busiest_server_thread=None,
                capacity=None,
            )
        )

    assert not limit()
    result.gone = 0
    assert limit()


@pytest.mark.ci
def test_the_table_and_the_document_tell(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with ends_after(3) as address:
        words = ["-q", "-c", "4", "-d", "500ms", "-R", "80", "--engine", "epoll"]
        words = ["run", format_address(*address), *words, "--json", str(file)]
        again = run("echoload", *words, "--reconnect")
        (found,) = json.loads(file.read_text())["results"]
        assert found["reconnects"] >= 8
        assert found["recovery_us"]["p50"] > 0
        assert f"{found['reconnects']} connections were lost and made again" in again.stdout
        without = run("echoload", *words)
        assert "the server ended 4 connections while it owed nothing" in without.stdout
        assert "28 messages that were due were never sent (dropped): they had no" in without.stdout
        assert "at its limit" not in without.stdout


# -- a header of the PROXY protocol --------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("source", "destination"),
    [(("192.0.2.1", 4711), ("127.0.0.1", 9)), (("2001:db8::1", 4711), ("::1", 9))],
)
def test_a_header_reads_as_it_was_written(
    version: str, source: tuple[str, int], destination: tuple[str, int]
) -> None:
    header = encode(version, source, destination)
    read = parse(header + b"and what follows")
    assert read is not None
    assert (read.length, read.source) == (len(header), source)
    local = parse(local_header(version))
    assert local is not None
    assert local.source is None


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_each_connection_begins_with_a_header(engine: str, version: str) -> None:
    seen: list[tuple[tuple[str, int] | None, tuple[str, int]]] = []

    def converse(sock: socket.socket, _number: int) -> None:
        with sock:
            data = sock.recv(65536)
            while (header := parse(data)) is None:
                data += sock.recv(65536)
            seen.append((header.source, sock.getpeername()))
            data = data[header.length :] or sock.recv(65536)
            while data:
                sock.sendall(data)
                data = sock.recv(65536)

    with accepting(converse) as address:
        result = carry_out(
            engine,
            address,
            connections=4,
            active=3,  # a silent connection has one, too
            duration=None,
            messages=30,
            reconnect_every=5,
            proxy_header=version,
        )
        assert wire.eventually(lambda: len(seen) == 7)
    assert not result.errors, result.first_errors
    assert result.verified == 30
    assert all(source == peer for source, peer in seen)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_header_comes_before_tls(engine: str, version: str) -> None:
    settings: dict[str, Any] = {
        "proxy_protocol": True,
        "proxy_from": "127.0.0.1",
        "tls_cert": SERVERS.issue(),
    }
    with echoserver.spawn(backend="selector", **settings) as server:
        result = carry_out(
            engine,
            server.address,
            connections=2,
            duration=None,
            messages=20,
            reconnect_every=5,
            proxy_header=version,
            tls=True,
            ca=SERVERS.cert,
            timeout=5.0,
        )
    assert not result.errors, result.first_errors
    assert result.verified == 20


@pytest.mark.ci
def test_compare_sends_a_header(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    words = ["--rounds", "1", "-d", "100ms", "--warmup", "0", "-c", "2", "--engine", "epoll"]
    words += ["--backends", "selector", "--server-option", "proxy-protocol=true"]
    words += ["--proxy-header", "v2", "--server-option", "proxy-from=127.0.0.1"]
    result = run("echoload", "compare", *words, "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert json.loads(file.read_text())["results"][0]["errors"] == {}
