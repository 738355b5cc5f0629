"""A server whose port is that of its assignment, and not the one that it is told."""

import json
import socket
import sys
from pathlib import Path

import pytest

from tests.support.checking import check, failed
from tests.support.launching import free_port, run

SERVER = """
import socketserver

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, address):
        pass

Server(("127.0.0.1", PORT), Echo).serve_forever()
"""


@pytest.fixture
def port() -> int:
    """The port of the assignment."""
    return free_port()


@pytest.fixture
def words(port: int, tmp_path: Path) -> list[str]:
    """The command of a server that listens there."""
    file = tmp_path / "server.py"
    file.write_text(SERVER.replace("PORT", str(port)))
    return [sys.executable, str(file)]


def test_it_is_graded(port: int, words: list[str]) -> None:
    """L3 ends it, and starts it again on the same port."""
    assert not failed(check(words, "--port", str(port), "--only", "L1,L2,L3,S1"))


def test_without_the_option_it_is_said_where_it_listens(port: int, words: list[str]) -> None:
    report = check(words, "--only", "L1", "--timeout", "1s")
    assert (
        f"it listens on 127.0.0.1:{port} instead (for a fixed port, give --port)"
        in (failed(report)["L1"])
    )


def test_it_is_compared(port: int, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    quick = ("-q", "--rounds", "2", "-d", "100ms", "--warmup", "0", "-c", "2", "--engine", "epoll")
    result = run(
        *("echoload", "compare", *quick, "--pin", "off", "--backends", "selector"),
        *("--port", str(port), "--json", str(file), "--", *words),
    )
    assert result.returncode == 0, result.stderr
    assert all(row["verified"] for row in json.loads(file.read_text())["results"])
    assert "no {port}" not in result.stdout


def test_a_port_that_another_program_has_is_no_fault_of_the_server(
    port: int, words: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        graded = run("echoload", "check", "--port", str(port), "--only", "L1", "--", *words)
        compared = run("echoload", "compare", "--port", str(port), "-q", "--", *words)
    assert graded.returncode == 2
    assert f"something else listens on port {port} already" in graded.stdout + graded.stderr
    assert compared.returncode == 1
    assert "something else listens on it" in compared.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "127.0.0.1:4000", "--", "python3", "x.py"], "127.0.0.1:4000 is an address"),
        (["check", "--port", "4000", "127.0.0.1:4000"], "--port, --build, --memory"),
        (["compare", "--port", "4000", "--backends", "thread"], "--port is for the command"),
        (["check", "--port", "0", "--", "x"], "not in the range from 1 to 65535"),
    ],
    ids=["both", "address", "no command", "zero"],
)
def test_usage(words: list[str], message: str) -> None:
    result = run("echoload", *words)
    assert result.returncode == 2
    assert message in result.stderr
