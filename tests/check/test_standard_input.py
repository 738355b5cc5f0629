"""The standard input of a graded server: it is open, and nothing comes."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.checking import check, failed
from tests.support.launching import run

SERVES = """
import select, socket, sys, threading

def answer(client):
    with client:
        try:
            while data := client.recv(65536):
                client.sendall(data)
        except OSError:
            pass

def accept():
    while True:
        client, _ = listener.accept()
        threading.Thread(target=answer, args=(client,), daemon=True).start()

BEFORE
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
threading.Thread(target=accept, daemon=True).start()
print("Enter stops it")
AFTER
"""

READS = {
    "waits for Enter": "sys.stdin.readline()",
    "selects": "select.select([sys.stdin], [], [])",
}


def words(folder: Path, before: str = "", after: str = "") -> list[str]:
    """Return the command of a server that reads its input before it serves, or after."""
    file = folder / "server.py"
    file.write_text(SERVES.replace("BEFORE", before).replace("AFTER", after))
    return [sys.executable, str(file), "{port}"]


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
def test_a_server_that_stops_at_the_end_of_its_input_is_graded(read: str, tmp_path: Path) -> None:
    assert not failed(check(words(tmp_path, after=read), "--only", "L1,L2,S1"))


def test_a_server_that_waits_for_input_before_it_serves_is_told(tmp_path: Path) -> None:
    report = check(words(tmp_path, before="input('Port? ')"), "--only", "L1", "--timeout", "1s")
    assert "it waits for something on its standard input" in failed(report)["L1"]


def test_a_command_that_is_compared_stops_at_nothing_either(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = run(
        *("echoload", "compare", "-q", "--rounds", "1", "-d", "100ms", "--warmup", "0", "-c", "2"),
        *("--engine", "epoll", "--pin", "off", "--backends", "selector", "--json", str(file), "--"),
        *words(tmp_path, after=READS["waits for Enter"]),
    )
    assert result.returncode == 0, result.stderr
    assert all(row["verified"] for row in json.loads(file.read_text())["results"])
