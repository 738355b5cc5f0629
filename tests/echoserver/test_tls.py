"""TLS: who is let in, what is said of those who are not, and what a reload changes."""

import _ssl
import ctypes
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

import echoserver
from clients.address import format_address
from clients.client import EchoClient
from clients.tls import TlsError, TlsSocket, Trust
from tests.echoserver.test_cli import sentence
from tests.support import launching, pace, wire
from tests.support.certificates import CLIENTS, SERVERS, STRANGERS
from tests.support.inspection import settled
from tests.support.launching import Child, Terminal, run, totals
from tests.support.misbehaving import ending_with_its_reply

TRUST = Trust(SERVERS.cert)


def serving(
    backend: str = "thread", **settings: Any
) -> AbstractContextManager[echoserver.SpawnedServer]:
    return launching.serving(backend, **{"tls_cert": SERVERS.issue(), **settings})


def secured(address: wire.Address, trust: Trust = TRUST) -> TlsSocket:
    """Connect and shake hands, blocking."""
    tls = TlsSocket(wire.connect(address), trust.context(), "127.0.0.1")
    tls.handshake()
    return tls


def answered(address: wire.Address, trust: Trust = TRUST) -> bool:
    tls = secured(address, trust)
    tls.sendall(b"hello")
    return tls.recv(5) == b"hello"


# -- who is let in -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(exemplar: str, version: ssl.TLSVersion) -> None:
    """By the standard library's own way of speaking it."""
    context = ssl.create_default_context(cafile=SERVERS.cert)
    context.minimum_version = context.maximum_version = version
    data = wire.content(30_000)
    with serving(exemplar) as server:
        raw = wire.connect(server.address)
        with context.wrap_socket(raw, server_hostname="localhost") as sock:
            for _ in range(10):
                assert not wire.difference(wire.ask(sock, data), data)
            assert sock.version() == version.name.replace("_", ".")
            sock.unwrap()  # both sides have said close_notify
        assert totals(server)["truncations"] == 0


def test_older_versions_are_refused() -> None:
    context = ssl.create_default_context(cafile=SERVERS.cert)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving() as server:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(wire.connect(server.address), server_hostname="localhost")
        assert totals(server)["tls_failures"] == 1


def test_clients_with_the_right_certificate(exemplar: str) -> None:
    with serving(exemplar, tls_client_ca=CLIENTS.cert) as server:
        assert answered(server.address, Trust(SERVERS.cert, CLIENTS.issue()))
        assert totals(server)["tls_failures"] == 0


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (None, "peer did not return a certificate"),
        (STRANGERS.issue(), "certificate verify failed"),
        (CLIENTS.issue(expired=True), "certificate verify failed"),
    ],
    ids=["none", "wrong authority", "expired"],
)
def test_clients_with_another_certificate_get_not_one_byte(
    exemplar: str, certificate: str | None, reason: str
) -> None:
    with serving(exemplar, tls_client_ca=CLIENTS.cert) as server:
        tls = secured(server.address, Trust(SERVERS.cert, certificate))  # TLS 1.3: they hear later
        with pytest.raises((TlsError, ConnectionError)):
            tls.sendall(b"hello")
            assert tls.recv(5) == b""
            raise ConnectionError
        found = totals(server)
        assert (found["tls_failures"], found["bytes_in"], found["bytes_out"]) == (1, 0, 0)
        told = [event for event in server.log if event["event"] == "tls_failed"]
        assert [event["reason"].partition(":")[0] for event in told] == [reason]
        assert [event["client"] for event in told] == ["127.0.0.1"]


# -- who speaks something else -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "http request"),
        (wire.content(3000), "wrong version number"),
        (b"\x16\x03\x01\x40\x00" + bytes(16384), "unexpected message"),
        (b"\x16\x03\x01", "the peer broke off the handshake"),
    ],
    ids=["http", "garbage", "zeros", "a part"],
)
def test_what_is_not_tls_is_refused(exemplar: str, said: bytes, reason: str) -> None:
    with serving(exemplar) as server:
        sock = wire.connect(server.address)
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        reply = wire.read_to_end(sock)  # the end comes, and not a reset
        assert reply == b"" or (reply[0] == 0x15 and len(reply) < 20), "an alert and no more"
        assert answered(server.address)
        found = totals(server)
        assert (found["tls_failures"], found["connections"]) == (1, 2)
        told = [event["reason"] for event in server.log if event["event"] == "tls_failed"]
        assert told == [reason] or reason == "wrong version number"


def test_a_visitor_without_a_word_is_no_failure(exemplar: str) -> None:
    with serving(exemplar) as server:
        for _ in range(3):
            sock = wire.connect(server.address)
            sock.shutdown(socket.SHUT_WR)
            assert wire.read_to_end(sock) == b""
        found = totals(server)
        assert (found["tls_failures"], found["resets"], found["connections"]) == (0, 0, 3)


def test_a_stalled_handshake_has_a_deadline_and_stalls_nobody(exemplar: str) -> None:
    room = echoserver.load_backend(exemplar).concurrency(echoserver.Config()) or 50
    with serving(exemplar, handshake_timeout=2.0) as server:
        before = settled(server.pid)
        stalled = [wire.connect(server.address) for _ in range(min(room, 20))]
        for sock in stalled[::2]:
            sock.sendall(b"\x16\x03\x01\x02")
        begun = time.monotonic()
        assert answered(server.address)
        if room > 20:
            assert pace.within(time.monotonic() - begun, 2), "the others' silence was waited for"
        for sock in stalled:
            assert wire.read_to_end(sock) == b""
            sock.close()
        wire.opened.pop().close()
        assert wire.eventually(lambda: settled(server.pid) == before)
        found = totals(server)
        assert found["tls_timeouts"] == len(stalled)


def test_stalled_handshakes_do_not_hold_the_drain_up(exemplar: str) -> None:
    with serving(exemplar) as server:
        socks = [wire.connect(server.address) for _ in range(3)]
        socks[0].sendall(b"\x16\x03\x01\x02")
        begun = time.monotonic()
        found = totals(server)
        elapsed = time.monotonic() - begun
        assert pace.within(elapsed, 6)  # two seconds each, where they are served in turn
        assert found["cut"] == 0


# -- how streams end -----------------------------------------------------------------------------


def test_a_stream_without_a_close_notify_is_counted(exemplar: str) -> None:
    with serving(exemplar) as server:
        tls = secured(server.address)
        tls.sendall(b"hello")
        assert tls.recv(5) == b"hello"
        tls._sock.shutdown(socket.SHUT_WR)  # a FIN, which anybody on the way could have sent
        assert tls.recv(5) == b""
        assert not tls.truncated, "the server says close_notify all the same"
        assert wire.eventually(lambda: not _open(server))
        found = totals(server)
        assert (found["truncations"], found["resets"]) == (1, 0)


def test_the_end_is_said_before_it_comes(exemplar: str) -> None:
    """So that a client can tell a server's end from an attacker's."""
    with serving(exemplar, idle_timeout=0.3) as server:
        tls = secured(server.address)
        assert tls.recv(5) == b""
        assert not tls.truncated
        assert totals(server)["idle_timeouts"] == 1


def test_what_crosses_our_end_is_counted(exemplar: str) -> None:
    with serving(exemplar, idle_timeout=0.3) as server:
        tls = secured(server.address)
        assert tls.recv(5) == b""
        tls.sendall(b"too late")  # it lingers for a second
        tls.shutdown(socket.SHUT_WR)
        assert wire.eventually(lambda: not _open(server))
        found = totals(server)
        assert (found["bytes_discarded"], found["bytes_in"]) == (8, 0)


@pytest.mark.parametrize("model", ["process", "thread", "iterative", "selector"])
def test_bytes_without_content_are_silence(model: str) -> None:
    with serving(model, idle_timeout=1.0) as server:
        tls = secured(server.address)
        raw = tls._sock
        assert isinstance(raw, socket.socket)
        raw.sendall(b"\x17\x03\x03\x40\x00")  # the head of a record of 16 KiB
        begun = time.monotonic()
        with suppress(ConnectionError):
            while not select.select([raw], [], [], 0.1)[0]:  # the end, some time
                assert pace.within(time.monotonic() - begun, wire.patience), "it is never idle"
                raw.sendall(b"\0")
        raw.close()
        assert totals(server)["idle_timeouts"] == 1


class KeyUpdates:
    """A client that asks for new keys, again and again (RFC 8446, 4.6.3); Python has no way to."""

    def __init__(self, tls: TlsSocket) -> None:
        if sys.implementation.name != "cpython" or sys.version_info >= (3, 14):
            pytest.skip("where Python keeps its SSL is not known")
        self._tls = tls
        self._openssl: Any = ctypes.CDLL(_ssl.__file__)
        inner = tls._tls._sslobj  # type: ignore[attr-defined]
        # PySSLSocket: the head of every object, a reference, and SSL *.
        at = id(inner) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
        self._ssl = ctypes.c_void_p.from_address(at)

    def make(self, count: int) -> bytes:
        """Return so many of them, encrypted."""
        for _ in range(count):
            assert self._openssl.SSL_key_update(self._ssl, 0) == 1
            self._openssl.SSL_do_handshake(self._ssl)
        return self._tls._outgoing.read()


def test_key_updates_without_end_hold_nobody_up(exemplar: str) -> None:
    with serving(exemplar) as server:
        bystander = secured(server.address) if exemplar != "iterative" else None
        flood = secured(server.address)
        raw = flood._sock
        assert isinstance(raw, socket.socket)
        raw.sendall(KeyUpdates(flood).make(100))  # some are in order
        flood.sendall(b"hello")
        assert flood.recv(5) == b"hello"
        updates = KeyUpdates(flood).make(20_000)
        with suppress(ConnectionError):
            raw.sendall(updates)
        if bystander is not None:
            begun = time.monotonic()
            bystander.sendall(b"hello")
            assert bystander.recv(5) == b"hello"
            elapsed = time.monotonic() - begun
            assert pace.within(elapsed, 5.0)  # it took as long as all of them before
            bystander.close()
        with suppress(ConnectionError):
            assert wire.read_to_end(raw) is not None
        found = totals(server)
        assert (found["tls_failures"], found["cut"]) == (1, 0)


def _open(server: echoserver.SpawnedServer) -> str:
    which = ("state", "connected", "exclude", "time-wait", f"sport = :{server.port}")
    return subprocess.run(["ss", "-Htn", *which], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_as_a_client(version: str) -> None:
    """It takes an R for the wish to renegotiate, which TLS 1.2 has."""
    with serving() as server:
        where = format_address(*server.address)
        words = ["openssl", "s_client", "-connect", where, version, "-CAfile", SERVERS.cert]
        with Child(
            [*words, "-verify_return_error", "-quiet", "-no_ign_eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"hello\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"hello\n"
            client.stdin.write(b"R\n")
            client.stdin.flush()
            _, said = client.communicate(timeout=20)
        if version == "-tls1_2":
            assert b"no renegotiation" in said
        assert answered(server.address)


# -- a reload ------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.parametrize("name", ["thread", "process", "selector"])
def test_sighup_reads_the_certificate_again(
    name: str, processes: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "server.pem"
    shutil.copy(SERVERS.issue(), file)
    with serving(name, tls_cert=file, workers=processes) as server:
        old = secured(server.address)
        shutil.copy(STRANGERS.issue(), file)
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: _taken(server, Trust(STRANGERS.cert)))
        if processes is None:
            old.sendall(b"still here")
            assert old.recv(10) == b"still here"


@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.parametrize("spoilt", ["not PEM", "another's key", "gone"])
def test_a_reload_that_cannot_be_leaves_the_old_one(
    spoilt: str, processes: int | None, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(SERVERS.issue(), cert)
    shutil.copy(SERVERS.issue(), key)
    with serving(tls_cert=cert, tls_key=key, workers=processes) as server:
        match spoilt:
            case "not PEM":
                cert.write_text("?")
            case "another's key":
                shutil.copy(CLIENTS.issue(), key)
            case "gone":
                key.unlink()
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: any(e["event"] == "reload_failed" for e in server.log))
        assert answered(server.address)
        failed = [event for event in server.log if event["event"] == "reload_failed"]
        assert len(failed) == 1
        assert str(tmp_path) in failed[0]["reason"]


def _taken(server: echoserver.SpawnedServer, trust: Trust) -> bool:
    with suppress(OSError):
        return answered(server.address, trust)
    return False


# -- what is typed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tls-key", "x"], "--tls-key is of no use without --tls-cert"),
        (["--tls-cert", "/no/cert"], "cannot read the TLS file /no/cert: No such file"),
        (["--tls-cert", __file__], f"--tls-cert: cannot use {__file__}: it holds no certificate"),
        (["--tls-cert", SERVERS.cert], "it holds no private key"),
        (["--tls-cert", SERVERS.issue(), "--tls-key", STRANGERS.issue()], "--tls-key: cannot use"),
        (["--tls-cert", SERVERS.issue(), "--tls-client-ca", __file__], "--tls-client-ca: cannot"),
        (["--tls-cert", SERVERS.issue(), "--tls-client-ca", os.devnull], "holds no certificate"),
    ],
    ids=["key alone", "no file", "no PEM", "no key", "other key", "no authority", "nothing"],
)
def test_files_that_are_of_no_use(words: list[str], said: str) -> None:
    result = run("echoserver", "--port", "0", *words)
    assert result.returncode == 2
    assert said in sentence(result)


@pytest.fixture
def encrypted_key(tmp_path: Path) -> str:
    if not shutil.which("openssl"):
        pytest.skip("no openssl to encrypt a key with")
    key = tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "pkey", "-in", SERVERS.issue(), "-aes256", "-passout", "pass:secret"),
            *("-out", str(key)),
        ],
        check=True,
    )
    return str(key)


COMMANDS = [("echoclient", "--ping", "127.0.0.1:1"), ("echoload", "run", "127.0.0.1:1")]
"""Each with the address of nobody: what is wrong with the files is said first."""


def test_an_encrypted_key_asks_nobody_for_its_password(encrypted_key: str) -> None:
    said = f"cannot use {encrypted_key}: its private key is encrypted; decrypt it"
    commands = [
        ("echoserver", "--port", "0", "--tls-cert", SERVERS.issue(), "--tls-key", encrypted_key),
        *((*one, "--tls", "--cert", SERVERS.issue(), "--key", encrypted_key) for one in COMMANDS),
    ]
    for words in commands:
        # A pass phrase is asked for at the terminal, not on standard input.
        terminal = Terminal(*words)
        shown = " ".join(terminal.read_all().split())
        assert terminal.close() == 2, shown
        assert "pass phrase" not in shown
        assert said in shown, words


# -- our own clients -----------------------------------------------------------------------------


def test_echoclient(tmp_path: Path) -> None:
    data = wire.content(200_000)
    with serving(tls_client_ca=CLIENTS.cert) as server:
        where = format_address(*server.address)
        trusting = ("--tls", "--ca", SERVERS.cert, "--cert", CLIENTS.issue())
        assert "answered in" in run("echoclient", "--ping", where, *trusting).stdout
        piped = run("echoclient", where, *trusting, input=data, text=False)
        assert not wire.difference(cast("bytes", piped.stdout), data)
        insecure = run(
            "echoclient", "--ping", where, "--tls", "--insecure", "--cert", CLIENTS.issue()
        )
        assert insecure.returncode == 0
        distrusting = run("echoclient", "--ping", where, "--tls")
        assert distrusting.returncode == 1
        assert "has no certificate to be trusted" in distrusting.stderr
        plain = run("echoclient", "--ping", where, "--timeout", "1s")
        assert plain.returncode == 1


@pytest.mark.parametrize("last", [b"", b"MORE"], ids=["the end", "a record and the end"])
def test_our_end_takes_nothing_of_the_peers(last: bytes) -> None:
    """What came in one segment with the first record is still to be read after a half-close."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SERVERS.issue())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = TlsSocket(ours, TRUST.context(), "127.0.0.1")
        server = TlsSocket(theirs, context)
        greeting = threading.Thread(target=server.handshake)
        greeting.start()
        client.handshake()
        greeting.join()
        server.sendall(b"HELLO")
        if last:
            server.sendall(last)
        server.close_notify()
        assert client.recv(5) == b"HELLO"  # and has read the rest from the socket
        assert client.pending
        client.close_notify()
        assert client.pending
        ours.setblocking(False)
        assert client.recv(5) == last
        assert client.recv(5) == b""


def test_recv_returns_no_more_than_it_was_asked_for() -> None:
    with ending_with_its_reply(lambda data: data + b"EXTRA") as (host, port):
        client = EchoClient(host, port, trust=TRUST)
        assert client.echo(b"hello") == b"hello"
        assert client.finish() == b"EXTRA"
        client.close()


def test_echoclient_notices_an_end_in_the_segment_of_the_reply() -> None:
    with ending_with_its_reply(lambda data: data[:-1]) as address:
        where = format_address(*address)
        words = ["echoclient", where, "--tls", "--ca", SERVERS.cert, "--timeout", "10s"]
        begun = time.monotonic()
        piped = run(*words, input="hello")
        assert (piped.returncode, piped.stdout) == (0, "hell")
        pinged = run(*words, "--ping")
        assert (pinged.returncode, "after 31 of 32 bytes" in pinged.stderr) == (1, True)
        assert pace.within(time.monotonic() - begun, 10.0), "it waited until --timeout"


@pytest.mark.ci
def test_a_ping_where_a_client_needs_a_certificate_and_a_header() -> None:
    settings = {
        "ECHOSERVER_TLS_CERT": SERVERS.issue(),
        "ECHOSERVER_TLS_CLIENT_CA": CLIENTS.cert,
        "ECHOSERVER_PROXY_PROTOCOL": "on",
        "ECHOSERVER_PROXY_FROM": "127.0.0.1",
        "ECHOCLIENT_CERT": CLIENTS.issue(),
    }
    others: dict[str, Any] = {"proxy_protocol": True, "proxy_from": "127.0.0.1"}
    with serving(tls_client_ca=CLIENTS.cert, **others) as server:
        settings["ECHOSERVER_PORT"] = str(server.port)
        done = run("echoclient", "--ping", env=settings)
        assert done.returncode == 0, done.stderr
        assert "answered in" in done.stdout


@pytest.mark.ci
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "where it speaks TLS, add --tls"),
        (("--tls",), "has no certificate to be trusted"),
        (("--tls", "--ca", SERVERS.cert), "asks for a client's certificate; add --cert"),
    ],
)
def test_what_a_ping_that_fails_advises(words: tuple[str, ...], said: str) -> None:
    with serving(tls_client_ca=CLIENTS.cert) as server:
        done = run("echoclient", "--ping", format_address(*server.address), *words)
        assert done.returncode == 1
        assert said in sentence(done)


def test_a_ping_of_what_speaks_no_tls() -> None:
    with launching.serving() as server:
        done = run("echoclient", "--ping", format_address(*server.address), "--tls", "--insecure")
        assert "does not speak TLS; leave out --tls" in sentence(done)


def test_a_ping_by_the_servers_own_settings() -> None:
    with serving() as server:
        settings = {"ECHOSERVER_PORT": str(server.port), "ECHOSERVER_TLS_CERT": SERVERS.issue()}
        result = run("echoclient", "--ping", env=os.environ | settings)
        assert result.returncode == 0, result.stderr
        assert totals(server)["tls_failures"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ca", "x"], "--ca is for TLS: add --tls"),
        (["--tls", "--key", "x"], "--key is of no use without --cert"),
        (["--tls", "--ca", "/no/ca"], "cannot read the TLS file /no/ca: No such file"),
        (["--tls", "--ca", "/"], "cannot read the TLS file /: Is a directory"),
        (["--tls", "--ca", "/dev/zero"], "the TLS file /dev/zero: it is larger than 4 MiB"),
        (["--tls", "--cert", "/dev/zero"], "the TLS file /dev/zero: it is larger than 4 MiB"),
        (["--tls", "--ca", __file__], f"--ca: cannot use {__file__}: it holds no certificate"),
        (["--tls", "--cert", "/no/cert"], "cannot read the TLS file /no/cert: No such file"),
        (["--tls", "--cert", __file__], f"--cert: cannot use {__file__}: it holds no certificate"),
        (["--tls", "--cert", SERVERS.cert], "it holds no private key"),
        (
            ["--tls", "--cert", SERVERS.issue(), "--key", STRANGERS.issue()],
            f"--key: cannot use {STRANGERS.issue()}: its private key is not the certificate's",
        ),
    ],
    ids=[
        "no tls",
        "key alone",
        "no ca",
        "folder",
        "endless ca",
        "endless cert",
        "no CA",
        "no cert",
        "no PEM",
        "no key",
        "other",
    ],
)
def test_what_clients_are_told_wrong(words: list[str], said: str) -> None:
    for command in COMMANDS:
        result = run(*command, *words)
        assert result.returncode == 2
        assert said in sentence(result)


def test_what_the_environment_says_is_called_by_its_name() -> None:
    environment = {"ECHOCLIENT_CERT": SERVERS.issue(), "ECHOCLIENT_KEY": STRANGERS.issue()}
    for command in COMMANDS:
        result = run(*command, "--tls", env=environment)
        assert result.returncode == 2
        assert "ECHOCLIENT_KEY: cannot use" in sentence(result)


@pytest.mark.ci
def test_our_own_clients_end_their_streams() -> None:
    """What is counted as truncated is somebody else's doing."""
    with serving() as server:
        where = format_address(*server.address)
        for words in (
            ("echoclient", "--ping", where),
            ("echoload", "run", where, "-c", "4", "-n", "40", "--reconnect-every", "1"),
            ("echoload", "run", where, "-c", "4", "-n", "40", "--engine", "epoll"),
            ("echoload", "run", where, "-c", "4", "-n", "40", "--engine", "threads"),
        ):
            done = run(*words, "--tls", "--ca", SERVERS.cert)
            assert done.returncode == 0, done.stderr
        assert totals(server)["truncations"] == 0


@pytest.mark.ci
def test_echoload(exemplar: str) -> None:
    bound = echoserver.load_backend(exemplar).concurrency(echoserver.Config()) or 20
    with serving(exemplar) as server:
        result = run(
            *("echoload", "run", format_address(*server.address), "-c", str(min(bound, 20))),
            *("-n", "2000", "--tls", "--ca", SERVERS.cert),
        )
        assert result.returncode == 0, result.stderr
        assert totals(server)["resets"] == 0
