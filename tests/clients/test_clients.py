"""The programs that talk to a server: echoclient, and the library client."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import echoserver
from clients import EchoClient, ShortReplyError
from clients.address import format_address, parse_address
from clients.interactive import printable
from tests.support import wire
from tests.support.certificates import SERVERS
from tests.support.launching import Terminal, command, free_port, run
from tests.support.misbehaving import server as misbehaving


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:80", ("localhost", 80)),
        (":80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, address: wire.Address) -> None:
    assert parse_address(text) == address
    assert parse_address(format_address(*address)) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "host:0", "host:65536", "::1", "a:b", "h:²"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|brackets"):
        parse_address(text)


# -- the library client ------------------------------------------------------------------------


def test_library_client(echo_server: echoserver.SpawnedServer) -> None:
    with EchoClient(*echo_server.address) as client:
        assert client.echo(b"") == b""
        assert client.echo(wire.ALL_BYTES) == wire.ALL_BYTES
        big = wire.content(20 << 20)  # more than all buffers hold
        assert not wire.difference(client.echo(big), big)
        client.sock.sendall(b"the rest")
        assert client.finish() == b"the rest"


def test_library_client_notices_a_short_reply() -> None:
    with misbehaving(lambda data, _: data[:-2] if len(data) > 2 else None) as address:
        with (
            EchoClient(*address, timeout=0.3) as client,
            pytest.raises(TimeoutError, match="4 of 6"),
        ):
            client.echo(b"abcdef")
        with (
            EchoClient(*address) as client,
            pytest.raises(ShortReplyError, match="0 of 1") as short,
        ):
            client.echo(b"a")
        assert (short.value.reply, short.value.owed) == (b"", 1)


# -- echoclient in a pipe ----------------------------------------------------------------------


def test_pipe(echo_server: echoserver.SpawnedServer) -> None:
    address = format_address(*echo_server.address)
    assert run("echoclient", address, input="hi").stdout == "hi"
    assert run("echoclient", address, input="").stdout == ""
    assert run("echoclient", address, input="q\n").stdout == "q\n"


def test_pipe_of_many_bytes(echo_server: echoserver.SpawnedServer) -> None:
    data = wire.content(30 << 20)
    result = run("echoclient", format_address(*echo_server.address), input=data, text=False)
    assert result.returncode == 0
    assert not wire.difference(result.stdout, data)  # type: ignore[arg-type]


def test_pipe_into_a_reader_that_has_enough(echo_server: echoserver.SpawnedServer) -> None:
    where = format_address(*echo_server.address)
    result = subprocess.run(
        [
            "sh",
            "-c",
            'head -c 5000000 /dev/zero | "$0" "$1" | head -c 3',
            command("echoclient"),
            where,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stdout == "\0\0\0"
    assert result.stderr == ""


def test_pipe_with_the_server_gone_first() -> None:
    with misbehaving(lambda _data, _: None, hard=True) as address:
        result = run("echoclient", format_address(*address), input="hi")
    assert result.returncode == 1
    assert "connection was broken" in result.stderr


def test_no_server() -> None:
    result = run("echoclient", f"127.0.0.1:{free_port()}", input="hi")
    assert result.returncode == 1
    assert "is the server running?" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# -- echoclient --ping ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["echo", "upper"])
def test_ping(name: str) -> None:
    with echoserver.spawn(handler=name) as server:
        result = run("echoclient", "--ping", format_address(*server.address))
        assert result.returncode == 0
        assert " ms" in result.stdout
        for host in ("127.0.0.1", "0.0.0.0"):
            followed = run(
                *("echoclient", "--ping"),
                env={"ECHOSERVER_HOST": host, "ECHOSERVER_PORT": str(server.port)},
            )
            assert followed.returncode == 0, followed.stderr


def test_ping_follows_the_configuration_file(
    echo_server: echoserver.SpawnedServer, tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f"port = {echo_server.port}\n")
    assert run("echoclient", "--ping", env={"ECHOSERVER_CONFIG": str(file)}).returncode == 0


def test_ping_of_port_0_is_a_usage_error() -> None:
    result = run("echoclient", "--ping", env={"ECHOSERVER_PORT": "0"})
    assert result.returncode == 2
    assert "ECHOSERVER_PORT is 0" in result.stderr


def test_ping_of_no_echo_server() -> None:
    with misbehaving(lambda data, _: data[::-1]) as address:
        wrong = run("echoclient", "--ping", format_address(*address))
    assert wrong.returncode == 1
    assert "is not an echo server" in wrong.stderr
    with misbehaving(lambda _data, _: b"") as address:
        mute = run("echoclient", "--ping", "--timeout", "300ms", format_address(*address))
    assert mute.returncode == 1
    assert "did not answer" in mute.stderr


# -- echoclient at a terminal --------------------------------------------------------------------


def test_conversation_at_a_terminal(echo_server: echoserver.SpawnedServer) -> None:
    terminal = Terminal("echoclient", format_address(*echo_server.address))
    terminal.read_until("Connected to 127.0.0.1")
    terminal.read_until("> ")
    for typed in ("hello", "žluťoučký kůň 😀", "x" * 3000):
        terminal.type(typed + "\r")
        terminal.read_until("\n")  # what was typed, as the terminal shows it
        assert terminal.read_until("\r\n> ").strip("> \r\n").endswith(typed[-40:])
    terminal.type("\r")  # an empty line is answered by an empty line, not waited for
    terminal.read_until("> ")
    terminal.type("q\r")
    assert terminal.close() == 0


def test_line_editing_and_history(echo_server: echoserver.SpawnedServer) -> None:
    pytest.importorskip("readline")
    terminal = Terminal("echoclient", format_address(*echo_server.address))
    terminal.read_until("> ")
    terminal.type("hellp\x7fo\r")  # a correction
    terminal.read_until("\r\nhello\r\n")
    terminal.read_until("> ")
    terminal.type("\x1b[A\r")  # the arrow up: the line before
    terminal.read_until("\r\nhello\r\n")
    terminal.read_until("> ")
    terminal.type("\x04")
    assert terminal.close() == 0


def test_ctrl_d_quits(echo_server: echoserver.SpawnedServer) -> None:
    terminal = Terminal("echoclient", format_address(*echo_server.address))
    terminal.read_until("> ")
    terminal.type("\x04")
    assert terminal.close() == 0


def test_ctrl_c_quits_quietly(echo_server: echoserver.SpawnedServer) -> None:
    terminal = Terminal("echoclient", format_address(*echo_server.address))
    terminal.read_until("> ")
    for _ in range(20):
        # Again: one that arrives while readline is setting itself up waits for the next key.
        terminal.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            terminal.process.wait(0.5)
            break
    assert terminal.close() == 130


def test_server_that_ends_is_noticed() -> None:
    with misbehaving(lambda _data, _: None) as address:
        terminal = Terminal("echoclient", format_address(*address))
        terminal.read_until("> ")
        terminal.type("hello\r")
        terminal.read_until("The server closed the connection.")
        assert terminal.close() == 1


@contextmanager
def conversing(*words: str, **options: Any) -> Iterator[tuple[Terminal, socket.socket]]:
    """Run echoclient at a terminal, with the test as its server; yield both ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = format_address(*listener.getsockname())
        terminal = Terminal("echoclient", *words, address, **options)
        server, _ = listener.accept()
        with server:
            server.settimeout(wire.patience)
            terminal.read_until("> ")
            yield terminal, server


@pytest.fixture(params=["readline", "no_readline"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Return what a terminal is given: line editing of Python's, or the terminal's own."""
    if request.param == "readline":
        pytest.importorskip("readline")
        return {}
    (tmp_path / "readline.py").write_text("raise ImportError\n")
    return {"env": {"PYTHONPATH": str(tmp_path)}}


@pytest.mark.parametrize("typed", ["", "half a li"])
def test_a_server_that_ends_at_the_prompt_is_noticed(options: dict[str, Any], typed: str) -> None:
    with conversing(**options) as (terminal, server):
        terminal.type(typed)
        terminal.read_until(typed)
        server.close()
        terminal.read_until("The server closed the connection.")
        assert terminal.close() == 1


def test_a_connection_that_breaks_at_the_prompt_is_noticed() -> None:
    with conversing() as (terminal, server):
        wire.reset_on_close(server)
        server.close()
        terminal.read_until("The connection was broken: Connection reset by peer.")
        assert terminal.close() == 1


def test_a_server_that_ends_at_the_prompt_is_noticed_through_tls() -> None:
    with echoserver.spawn(tls_cert=SERVERS.issue()) as server:
        words = ("--tls", "--ca", SERVERS.cert, format_address(*server.address))
        terminal = Terminal("echoclient", *words)
        terminal.read_until("> ")
        terminal.type("hello\r")
        terminal.read_until("\nhello\r\n")
        terminal.read_until("> ")
        assert server.stop() == 0
        terminal.read_until("The server closed the connection.")
        assert terminal.close() == 1


def test_what_is_not_owed_is_shown_apart(options: dict[str, Any]) -> None:
    with conversing(**options) as (terminal, server):
        server.sendall(b"Welcome!\n")
        terminal.read_until("(not owed) Welcome!\r\n")
        terminal.read_until("> ")
        terminal.type("hello\r")
        assert server.recv(100) == b"hello\n"
        server.sendall(b"hello\nand more\n")
        terminal.read_until("\nhello\r\n")
        assert (
            terminal.read_until("and more\r\n")
            .replace("> ", "")
            .endswith("(not owed) and more\r\n")
        )
        terminal.read_until("> ")
        terminal.type("again\r")
        assert server.recv(100) == b"again\n"
        server.sendall(b"You said: again\n")
        terminal.read_until("(not owed) You said: \r\nagain\r\n")
        terminal.read_until("> ")
        terminal.type("q\r")
        assert terminal.close() == 0


def test_what_comes_while_a_line_is_typed_leaves_the_line() -> None:
    pytest.importorskip("readline")
    with conversing() as (terminal, server):
        for number in range(3):
            terminal.type(f"line {number}: hel")
            terminal.read_until(": hel")
            server.sendall(b"news\n")
            terminal.read_until("(not owed) news\r\n")
            terminal.read_until(": hel")
            terminal.type("lo\r")
            line = f"line {number}: hello"
            assert server.recv(100) == f"{line}\n".encode()
            server.sendall(f"{line}\n".encode())
            terminal.read_until(f"\n{line}\r\n")
            terminal.read_until("> ")
        terminal.type("\x1b[A\x1b[A\r")  # two lines back
        assert server.recv(100) == b"line 1: hello\n"
        server.sendall(b"line 1: hello\n")
        terminal.read_until("\nline 1: hello\r\n")
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.close() == 0


def test_a_late_reply_is_shown_as_it_comes() -> None:
    with conversing() as (terminal, server):
        terminal.type("hello\r")
        assert server.recv(100) == b"hello\n"
        server.sendall(b"hel")
        terminal.read_until("\nhel\r\n(The server still owes 3 bytes.)\r\n")
        terminal.read_until("> ")
        server.sendall(b"lo\n!")
        terminal.read_until("(late) lo\r\n(not owed) !\r\n")
        terminal.read_until("> ")
        terminal.type("q\r")
        assert terminal.close() == 0


def test_reply_in_pieces_is_shown_whole(tmp_path: Path) -> None:
    (tmp_path / "pieces.py").write_text(
        "from echoserver import Handler, Sleep\n"
        "class Pieces(Handler):\n"
        "    def receive(self, data):\n"
        "        for byte in data.upper():\n"
        "            yield bytes([byte])\n"
        "            yield Sleep(0.02)\n"
    )
    with echoserver.spawn(handler=f"{tmp_path}/pieces.py:Pieces") as server:
        terminal = Terminal("echoclient", format_address(*server.address))
        terminal.read_until("> ")
        terminal.type("several words\r")
        terminal.read_until("several words\r\n")  # as typed
        assert terminal.read_until("> ") == "SEVERAL WORDS\r\n> "
        terminal.type("q\r")
        assert terminal.close() == 0


def test_a_reply_cannot_command_the_terminal() -> None:
    assert printable(b"\x1b[2Jgone\x07\xff") == "\\x1b[2Jgone\\x07\\xff"
    assert printable("tab\tünïcode\n".encode()) == "tab\tünïcode\n"


@pytest.mark.parametrize("redirection", ["<&-", "</dev/null >&-", "</dev/null >/dev/full"])
def test_broken_standard_streams(echo_server: echoserver.SpawnedServer, redirection: str) -> None:
    for words in ([], ["--ping"]):
        result = subprocess.run(
            [
                *("sh", "-c", f'exec "$@" {redirection}', "sh", command("echoclient")),
                *(*words, format_address(*echo_server.address)),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert "Traceback" not in result.stderr
        assert len(result.stderr.splitlines()) <= 1


def test_output_that_is_full_is_said(echo_server: echoserver.SpawnedServer) -> None:
    result = subprocess.run(
        [
            *("sh", "-c", 'echo hi | "$0" "$1" >/dev/full', command("echoclient")),
            format_address(*echo_server.address),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert result.returncode == 1
    assert "No space left" in result.stderr
    assert len(result.stderr.splitlines()) == 1
