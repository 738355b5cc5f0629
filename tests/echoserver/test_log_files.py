"""What the server writes into files that it shares: every line stays whole, its own and others'."""

import fcntl
import json
import os
import select
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from echoserver.monitoring.access_log import _Writer
from echoserver.monitoring.scoreboard import Scoreboard
from tests.support import inspection, wire
from tests.support.launching import await_listening, free_port, serving, shell, terminate

CLIENTS = 100


def lines_of(path: Path) -> list[dict[str, object]]:
    """Return what each line holds; a line that is not whole fails the test."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_opened_without_append_keeps_what_others_write(tmp_path: Path) -> None:
    """They share the open file, and so the place at which the next line goes."""
    path, port = tmp_path / "both.log", free_port()
    with (
        path.open("wb", buffering=0) as log,
        shell('exec "$@"', "echoserver", "--port", str(port), stderr=log) as process,
    ):
        await_listening(port, process)
        assert wire.eventually(lambda: b'"listening"' in path.read_bytes())
        log.write(b'{"event": "of another program"}\n')
        assert terminate(process) == 0
    told = [line["event"] for line in lines_of(path)]
    assert told == ["listening", "of another program", "draining", "stopped"]


SPELLINGS = ["-", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/2", "{link}", "{path}"]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("spelling", "layout"),
    [*((spelling, "") for spelling in SPELLINGS), ("/dev/stderr", "--workers=2")],
)
def test_log_and_access_log_in_one_file(spelling: str, layout: str, tmp_path: Path) -> None:
    path, link, port = tmp_path / "both.log", tmp_path / "link", free_port()
    link.symlink_to("/dev/stderr")
    arguments = ["--port", str(port), "-b", "selector", "--log-level", "debug"]
    arguments += ["--access-log", spelling.format(path=path, link=link), *layout.split()]
    with (
        path.open("wb", buffering=0) as log,
        shell('exec "$@"', "echoserver", *arguments, stdout=log, stderr=log) as process,
    ):
        address = await_listening(port, process)
        assert wire.eventually(lambda: b'"listening"' in path.read_bytes())
        for number in range(CLIENTS):
            assert wire.served(address)
            if number == CLIENTS // 2:
                process.send_signal(signal.SIGHUP)
                assert wire.eventually(lambda: b'"reloaded"' in path.read_bytes())
        os.write(log.fileno(), b'{"event": "of another program"}\n')
        assert terminate(process) == 0
    lines = lines_of(path)
    told = [line.get("event", "accessed") for line in lines]
    last = lines[told.index("stopped")]
    assert last["log_lines_dropped"] == 0
    assert told.count("of another program") == 1
    for event in ("connection_opened", "connection_closed", "accessed"):
        assert told.count(event) == last["connections"], event
    assert CLIENTS <= int(str(last["connections"])) <= CLIENTS + 1


def test_an_access_log_on_a_pipe_is_written_in_pieces_that_a_pipe_takes_whole() -> None:
    """Whatever is longer may be cut in two by what another program writes (pipe(7), PIPE_BUF)."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    ours, others = b"o" * 149 + b"\n", b"t" * 99 + b"\n"
    scoreboard = Scoreboard(1, 1)
    log: Any = None  # nothing is reopened
    access = _Writer("-", writer, -1, scoreboard, log)
    threads = [
        threading.Thread(target=lambda: access._write(ours * 200), daemon=True),
        threading.Thread(
            target=lambda: [os.write(writer, others) for _ in range(300)], daemon=True
        ),
    ]
    for thread in threads:
        thread.start()
    data = b""
    while len(data) < len(ours) * 200 + len(others) * 300:
        data += os.read(reader, 1000)
    assert set(data.splitlines(keepends=True)) == {ours, others}
    assert scoreboard.lost_lines == 0
    os.close(reader)
    os.close(writer)


# -- how many lines ------------------------------------------------------------------------------


@pytest.mark.ci
def test_a_client_causes_a_line_a_second_of_each_kind_and_each_is_counted(
    exemplar: str, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from echoserver import Handler\n\n\nclass Fails(Handler):\n"
        "    def receive(self, data):\n        raise ValueError\n"
    )
    begun = time.monotonic()
    with serving(exemplar, handler=f"{plugin}:Fails") as server:
        for _ in range(CLIENTS):
            with wire.connect(server.address) as sock:
                sock.sendall(b"fail")
                wire.read_to_end(sock)
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["handler_errors"] == CLIENTS
    lines = inspection.events(server, "handler_failed")
    seconds = time.monotonic() - begun
    # One at once, one a second, and the rest when the drain begins and when it is over.
    assert 2 <= len(lines) <= seconds + 3
    assert sum(1 + line.get("repeated", 0) for line in lines) == CLIENTS
    assert all("plugin.py:6" in line["where"] for line in lines)
