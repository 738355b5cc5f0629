"""Several listening addresses, and UNIX sockets: the server, its clients, the load tester."""

import errno
import fcntl
import json
import os
import pwd
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import echoserver
from clients import EchoClient
from clients.address import format_address, parse_address
from clients.tls import Trust
from echoserver.admission import binding, listening_sockets, unix_binding
from echoserver.admission.binding import bind
from echoserver.admission.listening_sockets import ListeningSockets
from loadtest.machine.sockets import ListeningAddress, queue_length
from tests.echoserver.test_cli import sentence
from tests.support import inspection, wire
from tests.support.certificates import SERVERS
from tests.support.launching import Child, command, run, serving, totals


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path is short: a socket's may have 107 bytes."""
    with TemporaryDirectory() as path:
        yield Path(path)


def only_one(backend: str) -> bool:
    """Tell whether a backend serves one client at a time."""
    return echoserver.load_backend(backend).concurrency(echoserver.Config()) == 1


def unix(path: Path | str) -> str:
    return f"unix:{path}"


@contextmanager
def listening(*hosts: str, **settings: Any) -> Iterator[ListeningSockets]:
    sockets = bind(echoserver.Config(host=hosts, **{"port": 0, **settings}))
    try:
        yield sockets
    finally:
        sockets.close()


# -- as they are typed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/echo.sock", ("unix:/run/echo.sock", 0)),
        ("unix:echo.sock", ("unix:echo.sock", 0)),
        ("unix:@echo", ("unix:@echo", 0)),
        ("@echo", ("unix:@echo", 0)),
    ],
)
def test_addresses_of_unix_sockets(text: str, address: wire.Address) -> None:
    assert parse_address(text) == address
    assert parse_address(format_address(*address)) == address
    assert echoserver.load_config({"host": (text,)}, {}).host == (address[0],)


@pytest.mark.parametrize("text", ["unix:", "@", "unix:@", "unix:/" + 107 * "x", "@" + 107 * "x"])
def test_no_addresses_of_unix_sockets(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not .*(unix:/path|107 bytes)"):
        parse_address(text)
    with pytest.raises(echoserver.ConfigError, match=r"^--host must be .*(unix:/path|107 bytes)"):
        echoserver.load_config({"host": (text,)}, {})


def test_several_hosts_from_every_source(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    several = ("127.0.0.1", "unix:/a")
    file.write_text('host = ["127.0.0.1", "unix:/a"]')
    assert echoserver.load_config({}, {}, file).host == several
    file.write_text('host = "127.0.0.1, unix:/a"')
    assert echoserver.load_config({}, {}, file).host == several
    assert echoserver.load_config({}, {"ECHOSERVER_HOST": "127.0.0.1,unix:/a"}).host == several
    assert echoserver.load_config({"host": ("unix:/a,b",)}, {}).host == ("unix:/a,b",)
    for nothing in ("[]", '""', '","'):
        file.write_text(f"host = {nothing}")
        with pytest.raises(echoserver.ConfigError, match="host must be"):
            echoserver.load_config({}, {}, file)


# -- where is listened -----------------------------------------------------------------------------


def _resolved(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let a name resolve to these addresses."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *more: Any, **options: Any) -> list[Any]:
        names = addresses if host == "several" else (host,)
        return [found for name in names for found in resolve(name, *more, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_stands_for_all_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one port; those that this machine does not have are left out."""
    _resolved(monkeypatch, "127.0.0.1", "198.51.100.1", "127.0.0.2", "127.0.0.1")
    with listening("several") as sockets:
        addresses = sockets.addresses
        assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2"]
        assert len({port for _, port in addresses}) == 1
    _resolved(monkeypatch, "198.51.100.1", "127.0.0.1")
    with listening("127.0.0.1", "several") as sockets:
        assert [host for host, _ in sockets.addresses] == ["127.0.0.1"]


def test_a_name_none_of_whose_addresses_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolved(monkeypatch, "198.51.100.1", "198.51.100.2")
    with (
        pytest.raises(
            echoserver.BootError, match=r"^cannot listen on 198\.51\.100\.1:\d+ .*several\)"
        ),
        listening("127.0.0.1", "several"),
    ):
        pass


@pytest.mark.parametrize(
    ("hosts", "kept"),
    [
        (["127.0.0.1", "127.0.0.1"], ["127.0.0.1"]),
        (["127.0.0.1", "0.0.0.0", "127.0.0.2"], ["0.0.0.0"]),
        (["0.0.0.0", "127.0.0.1"], ["0.0.0.0"]),
        (["0.0.0.0", "::"], ["::"]),
        (["::", "127.0.0.1", "::1"], ["::"]),
        (["0.0.0.0", "::1"], ["0.0.0.0", "::1"]),
    ],
    ids=str,
)
def test_an_address_that_another_one_includes_is_not_in_its_way(
    hosts: list[str], kept: list[str]
) -> None:
    with listening(*hosts) as sockets:
        assert [host for host, _ in sockets.addresses] == kept


def test_a_free_port_is_free_at_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    listen, tried = binding._listen_at, []

    def taken_at_first(place: Any, port: int, config: echoserver.Config) -> Any:
        tried.append(port)
        if len(tried) == 2:
            raise OSError(errno.EADDRINUSE, "")
        return listen(place, port, config)

    monkeypatch.setattr(binding, "_listen_at", taken_at_first)
    with listening("127.0.0.1", "127.0.0.2") as sockets:
        assert len({port for _, port in sockets.addresses}) == 1
    assert tried[0] == tried[2] == 0
    assert tried[1] != tried[3]


def test_the_address_that_cannot_be_had_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(echoserver.BootError, match=rf"on 127\.0\.0\.2:{port} .*already in use"),
            listening(unix(folder / "a"), "127.0.0.1", "127.0.0.2", port=port),
        ):
            pass
    assert list(folder.iterdir()) == []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))


@pytest.mark.parametrize("processes", [None, 2])
def test_one_server_at_several_addresses(
    exemplar: str, processes: int | None, folder: Path
) -> None:
    hosts = ["127.0.0.1", unix(folder / "echo"), "127.0.0.2", f"@{folder}"]
    with serving(exemplar, host=hosts, workers=processes) as server:
        assert [host for host, _ in server.addresses] == [*hosts[:3], f"unix:@{folder}"]
        assert server.address == server.addresses[0]
        assert server.addresses[2] == ("127.0.0.2", server.port)
        for _ in range(3):
            assert all(map(wire.served, server.addresses))
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: inspection.events(server, "reloaded"))
        assert all(map(wire.served, server.addresses))
        if processes:  # a worker that leaves removes nothing
            worker = inspection.servers(server.pid)[0]
            os.kill(worker, signal.SIGTERM)
            assert wire.eventually(lambda: worker not in inspection.servers(server.pid))
            assert all(map(wire.served, server.addresses))
        found = totals(server)
        assert (found["resets"], found["unserved"]) == (0, 0)
        assert found["connections"] == (20 if processes else 16)
    assert list(folder.iterdir()) == []


# -- one accept policy -----------------------------------------------------------------------------


def test_a_queue_that_is_never_empty_keeps_no_other_waiting(exemplar: str, folder: Path) -> None:
    if only_one(exemplar):
        pytest.skip("serves one client at a time")
    hosts = ["127.0.0.1", unix(folder / "echo")]
    with serving(exemplar, host=hosts, max_connections=10) as server:
        crowded, other = server.addresses
        os.kill(server.pid, signal.SIGSTOP)
        assert inspection.stopped(server.pid)
        crowd = [wire.connect(crowded) for _ in range(40)]
        late = [wire.connect(other) for _ in range(3)]
        os.kill(server.pid, signal.SIGCONT)
        assert all(wire.ask(sock, b"X") == b"X" for sock in (crowd[0], *late))
        for sock in (*late, *crowd[:7]):  # the limit is one for all
            sock.close()
        assert all(wire.ask(sock, b"X") == b"X" for sock in crowd[7:17])
        crowd[17].settimeout(0.2)
        with pytest.raises(TimeoutError):
            wire.ask(crowd[17], b"X")


def test_who_is_turned_away_gets_an_end_and_no_reset(exemplar: str, folder: Path) -> None:
    """A close with unread input is ECONNRESET to the peer of a UNIX socket, too."""
    if only_one(exemplar):
        pytest.skip("serves one client at a time")
    settings: dict[str, Any] = {"max_connections": 1, "overload": "reject"}
    with serving(exemplar, host=unix(folder / "echo"), **settings) as server:
        with wire.connect(server.address) as first:
            assert wire.ask(first, b"X") == b"X"
            second = wire.connect(server.address)
            second.sendall(b"unread")
            assert wire.read_to_end(second) == b""
        found = totals(server)
        assert (found["connections"], found["rejected"]) == (1, 1)


@pytest.mark.parametrize("processes", [None, 2])
def test_the_drain_serves_every_queue(exemplar: str, processes: int | None, folder: Path) -> None:
    if only_one(exemplar):
        pytest.skip("serves one client at a time")
    hosts = ["127.0.0.1", unix(folder / "echo")]
    with serving(exemplar, host=hosts, workers=processes) as server:
        inspection.tell_all(server.pid, signal.SIGSTOP)
        queued = [wire.connect(address) for address in server.addresses for _ in range(5)]
        for sock in queued:
            sock.sendall(b"hello")
        server.process.send_signal(signal.SIGTERM)
        inspection.tell_all(server.pid, signal.SIGCONT)
        for sock in queued:
            assert wire.read_to_end(sock) == b"hello"
            sock.close()
        assert server.wait() == 0
        assert server.stopped is not None
        assert (server.stopped["connections"], server.stopped["unserved"]) == (10, 0)


def test_how_many_wait_at_a_unix_socket(folder: Path) -> None:
    path = folder / "echo"
    for host in (unix(path), f"unix:@{folder}"):
        with listening(host, "127.0.0.1", backlog=7) as sockets:
            for _ in range(2):
                wire.connect((host, 0))
            assert next(iter(sockets)).queue() == (2, 7)
            assert sockets.queue() == (2, 14)
            assert queue_length(host, 0) == 2
            assert len(ListeningAddress(host, 0).inodes()) == 1
        assert queue_length(host, 0) is None


def test_no_shedding_of_clients_of_unix_sockets(folder: Path) -> None:
    result = run("echoserver", "--overload", "shed-idle", "--host", unix(folder / "echo"))
    assert result.returncode == 2
    assert "the kernel does not tell which clients of a UNIX socket" in sentence(result)


# -- the byte contract over UNIX sockets -----------------------------------------------------------


def test_idle_and_unread(exemplar: str, folder: Path) -> None:
    """A UNIX socket inherits no timeout from its listener."""
    host = unix(folder / "echo")
    with serving(exemplar, host=host, idle_timeout=0.3, write_timeout=0.4) as server:
        silent = wire.connect(server.address)
        assert wire.ask(silent, b"X") == b"X"
        assert wire.read_to_end(silent) == b""
        silent.close()
        deaf = wire.connect(server.address)
        wire.push_until_blocked(deaf, bytes(1 << 22))
        ended = select.poll()
        ended.register(deaf, 0)  # POLLHUP comes unasked, once both directions have ended
        assert ended.poll(wire.patience * 1000)
        deaf.close()
        found = totals(server)
        assert (found["idle_timeouts"], found["write_timeouts"]) == (1, 1)


def test_tls_over_a_unix_socket(folder: Path) -> None:
    with serving(host=unix(folder / "echo"), tls_cert=SERVERS.issue()) as server:
        with EchoClient(*server.address, trust=Trust(SERVERS.cert)) as client:
            assert client.echo(b"hello") == b"hello"
            assert client.finish() == b""
        assert totals(server)["tls_failures"] == 0


def test_what_a_peer_has_not_read_outlives_the_server(exemplar: str, folder: Path) -> None:
    """It is in the peer's own queue: nothing is owed any more, and the server need not wait."""
    with serving(exemplar, host=unix(folder / "echo")) as server:
        client = wire.connect(server.address)
        client.sendall(b"hello")
        assert wire.eventually(lambda: len(client.recv(9, socket.MSG_PEEK)) == 5)
        assert totals(server)["cut"] == 0
        assert wire.read_to_end(client) == b"hello"


# -- who the peer is -------------------------------------------------------------------------------


def test_peers_have_a_process_and_a_user(folder: Path) -> None:
    """And no address, so that rules and limits for addresses are not about them."""
    log = folder / "access"
    rules: dict[str, Any] = {"allow": "192.0.2.0/24", "max_connections_per_ip": 1}
    hosts = [unix(folder / "echo"), "127.0.0.1"]
    with serving("selector", host=hosts, access_log=log, log_level="debug", **rules) as server:
        socks = [wire.connect(server.address) for _ in range(2)]
        assert all(wire.ask(sock, b"X") == b"X" for sock in socks)
        assert wire.read_to_end(wire.connect(server.addresses[1])) == b""
        for sock in socks:
            sock.close()
        found = totals(server)
        assert (found["connections"], found["denied"]) == (2, 1)
    who = f"unix:pid={os.getpid()},uid={os.getuid()}"
    assert {json.loads(line)["peer"] for line in log.read_text().splitlines()} == {who}
    assert {one["peer"] for one in inspection.events(server, "connection_opened")} == {who}


@pytest.mark.parametrize("balancers", ["unix", "127.0.0.1"])
def test_a_balancer_at_a_unix_socket(balancers: str, folder: Path) -> None:
    log = folder / "access"
    rules: dict[str, Any] = {"proxy_protocol": True, "proxy_from": balancers, "deny": "192.0.2.7"}
    with serving("selector", host=unix(folder / "echo"), access_log=log, **rules) as server:
        for last in (7, 8):
            sock = wire.connect(server.address)
            sock.sendall(b"PROXY TCP4 192.0.2.%d 192.0.2.1 5 6\r\nhello" % last)
            believed = balancers == "unix" and last == 8
            assert wire.finish(sock) == (b"hello" if believed else b"")
        found = totals(server)
        assert found["denied"] == (balancers == "unix")
        assert found["proxy_failures"] == (0 if balancers == "unix" else 2)
    if balancers == "unix":
        assert json.loads(log.read_text())["peer"] == "192.0.2.8:5"


# -- the file of a UNIX socket ---------------------------------------------------------------------


def test_the_file_of_a_dead_server_is_in_nobodys_way(folder: Path) -> None:
    path = folder / "echo"
    with listening(unix(path)) as sockets:
        with (
            pytest.raises(echoserver.BootError, match=f"{path} .*a server listens there already"),
            listening(unix(path)),
        ):
            pass
        assert stat.S_ISSOCK(path.stat().st_mode)
        for sock in sockets:
            sock.close()  # as a kill does: the file stays
        with listening(unix(path)):
            wire.connect((unix(path), 0))
        assert not path.exists()


def test_what_is_not_a_socket_is_not_removed(folder: Path) -> None:
    file, link = folder / "file", folder / "link"
    file.write_text("precious")
    link.symlink_to(file)
    for path in (link, folder):
        with pytest.raises(echoserver.BootError, match="there is a file that is not a socket"):
            bind(echoserver.Config(host=(unix(path),)))
    result = run("echoserver", "--host", unix(file))
    assert result.returncode == 3
    said = f"cannot listen on unix:{file} (--host): there is a file that is not a socket"
    assert said in sentence(result)
    assert link.read_text() == "precious"
    with pytest.raises(echoserver.BootError, match="its directory does not exist"):
        bind(echoserver.Config(host=(unix(folder / "no" / "echo"),)))


def test_a_file_that_another_server_has_made_stays(folder: Path) -> None:
    path = folder / "echo"
    with listening(unix(path)) as first:
        for sock in first:
            sock.close()
        with listening(unix(path)):
            first.close()
            wire.connect((unix(path), 0))


def test_who_looks_for_a_dead_server_does_so_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From before it looks until it listens: a socket on which nobody listens yet looks dead."""
    path = folder / "echo"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    locked = []

    def noting(do: Any) -> Any:
        def done(*given: Any) -> None:
            fd = os.open(folder, os.O_RDONLY)
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked.append("no")
            os.close(fd)
            locked.append("yes")
            do(*given)

        return done

    socket_class = listening_sockets.UnixListeningSocket
    monkeypatch.setattr(unix_binding, "_remove_stale", noting(unix_binding._remove_stale))
    monkeypatch.setattr(socket_class, "listen", noting(socket_class.listen))
    with listening(unix(path)):
        assert locked == ["yes", "yes"]
        fd = os.open(folder, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


@pytest.mark.slow
def test_of_servers_that_start_together_one_serves(folder: Path) -> None:
    path = folder / "echo"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    script = (
        "import sys\nfrom echoserver import Config, BootError\n"
        "from echoserver.admission.binding import bind\n"
        "print(flush=True); sys.stdin.readline()\n"
        "try: sockets = bind(Config(host=(sys.argv[1],)))\n"
        "except BootError as error: print(error, flush=True)\n"
        "else: print('serves', flush=True)\n"
        "sys.stdin.readline()"
    )
    words = [sys.executable, "-c", script, unix(path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes: list[Any] = [subprocess.Popen(words, **pipes) for _ in range(4)]
    try:
        for process in processes:
            process.stdout.readline()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.stdout.readline() for process in processes]
        assert said.count("serves\n") == 1, said
        assert sum("a server listens there already" in one for one in said) == 3
        wire.connect((unix(path), 0))
    finally:
        for process in processes:
            process.communicate("\n", timeout=20)


def test_who_may_connect_to_the_file(folder: Path) -> None:
    path = folder / "echo"
    before = os.umask(0o077)
    try:
        for mode, expected in (({}, 0o666), ({"socket_mode": "660"}, 0o660)):
            with listening(unix(path), **mode):
                assert stat.S_IMODE(path.stat().st_mode) == expected
    finally:
        os.umask(before)
    result = run("echoserver", "--socket-mode", "rw")
    assert result.returncode == 2
    assert "--socket-mode must be a mode of three octal digits" in sentence(result)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_file_is_that_users_who_serves(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    path = folder / "echo"
    with serving("selector", host=unix(path), user="nobody", socket_mode="600") as server:
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (nobody.pw_uid, nobody.pw_gid)
        assert wire.served(server.address)
        totals(server)
    assert not path.exists()


# -- a service manager's sockets -------------------------------------------------------------------


@pytest.mark.parametrize("processes", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_several_sockets_that_are_handed_over(processes: tuple[str, ...], folder: Path) -> None:
    path = folder / "echo"
    with listening(unix(path), "127.0.0.1") as ours:
        told = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=a:b"
        script = f'exec 3<&"$0" 4<&"$1"; shift; {told} exec "$@"'
        fds = [sock.fileno() for sock in ours]
        given = ["bash", "-c", script, *map(str, fds), command("echoserver"), *processes]
        with Child(given, pass_fds=fds, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert all(map(wire.served, ours.addresses))
                assert process.stderr is not None
                announced = next(line for line in process.stderr if '"listening"' in line)
                process.terminate()
                process.communicate(timeout=20)
            finally:
                process.kill()
        assert process.returncode == 0
        assert json.loads(announced)["addresses"] == ours.display_addresses
        waiting = wire.connect((unix(path), 0))  # the file is the manager's
        assert waiting.send(b"X") == 1


# -- clients ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here() -> Iterator[echoserver.SpawnedServer]:
    """A server with everything at its default, at a UNIX socket."""
    with TemporaryDirectory() as path, serving("selector", host=unix(f"{path}/echo")) as server:
        yield server


def test_the_library_client(here: echoserver.SpawnedServer) -> None:
    with EchoClient(*here.address) as client:
        assert client.echo(b"hello") == b"hello"
        assert client.finish() == b""


def test_the_client_at_the_prompt(here: echoserver.SpawnedServer) -> None:
    ping = run("echoclient", "--ping", here.host)
    assert (ping.returncode, ping.stdout.split(" in ")[0]) == (0, f"{here.host} answered")
    environment = {"ECHOSERVER_HOST": f"{here.host},127.0.0.1", "ECHOSERVER_PORT": "0"}
    assert run("echoclient", input="hi", env=environment).stdout == "hi"
    nobody = run("echoclient", f"{here.host}-not", input="")
    assert nobody.returncode == 1
    assert f"cannot connect to {here.host}-not: there is no such socket; is the" in sentence(nobody)


@pytest.mark.parametrize("engine", ["threads", "epoll"])
def test_load(here: echoserver.SpawnedServer, engine: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = ["-c", "5", "-n", "50", "--engine", engine, "--reconnect-every", "3"]
    result = run("echoload", "run", here.host, *words, "--json", str(file))
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(file.read_text())["results"]
    assert (row["target"], row["errors"]) == (here.host, {})
    assert row["server"]["cpu_us_per_message"]  # its process was found


def test_a_queue_without_room_is_waited_for(folder: Path) -> None:
    """connect(2) on a UNIX socket that does not block fails at once there (EAGAIN)."""
    host = unix(folder / "echo")
    with listening(host, backlog=1) as sockets:
        (listener,) = sockets
        full = [wire.connect((host, 0)) for _ in range(2)]
        with pytest.raises(TimeoutError):
            EchoClient(host, 0, timeout=0.1)
        with suppress(BlockingIOError):
            listener.accept()[0].close()
        EchoClient(host, 0, timeout=5).close()
        assert len(full) == 2


def test_check_refuses(here: echoserver.SpawnedServer) -> None:
    result = run("echoload", "check", here.host)
    assert result.returncode == 2
    assert "is a UNIX socket; what check looks at is TCP" in sentence(result)


@pytest.mark.slow
def test_find_max_and_compare(here: echoserver.SpawnedServer, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = ["-c", "2", "-d", "300ms"]
    found = run("echoload", "find-max", here.host, *words, "--slo", "errors=0")
    assert found.returncode in {0, 5}, found.stderr
    compared = run(
        *("echoload", "compare", "--backends", "thread", "-t", f"there={here.host}", *words),
        *("--rounds", "1", "--json", str(file)),
    )
    assert compared.returncode == 0, compared.stderr
    rows = json.loads(file.read_text())["results"]
    assert {row["target"] for row in rows} == {"thread", "there"}
