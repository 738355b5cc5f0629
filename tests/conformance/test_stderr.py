"""Nobody listens to what the server says: that is no reason to serve less."""

import os
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.launching import await_listening, free_port, shell, terminate


@pytest.mark.parametrize(
    "redirection",
    ["2>&- >&-", "2>/dev/full >/dev/full", "2>&- >&- <&-"],
    ids=["closed", "full", "all-closed"],
)
def test_stderr_that_takes_nothing(exemplar: str, redirection: str) -> None:
    port = free_port()
    arguments = ["-b", exemplar, "--port", str(port), "--log-level", "debug"]
    with shell(f'exec "$@" {redirection}', "echoserver", *arguments) as process:
        address = await_listening(port, process)
        for _ in range(20):
            assert wire.served(address)
        assert terminate(process) == 0


def test_stderr_that_nobody_reads(exemplar: str) -> None:
    port = free_port()
    reader, writer = os.pipe()
    try:
        arguments = ["-b", exemplar, "--port", str(port), "--log-level", "debug"]
        with shell('exec "$@"', "echoserver", *arguments, stderr=writer) as process:
            address = await_listening(port, process)
            for _ in range(400):  # 2 lines each: several times what a pipe holds
                assert wire.served(address)
            assert terminate(process) == 0
            os.set_blocking(reader, False)
            assert len(os.read(reader, 1 << 20)) >= 60_000, "the pipe was not even filled"
    finally:
        os.close(reader)
        os.close(writer)


def test_stderr_shared_with_others_stays_blocking(exemplar: str) -> None:
    """O_NONBLOCK would be set for everyone who has the same open file."""
    port = free_port()
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb"),
        os.fdopen(writer, "wb"),
        shell(
            'exec "$@"', "echoserver", "-b", exemplar, "--port", str(port), stderr=writer
        ) as process,
    ):
        await_listening(port, process)
        assert os.get_blocking(writer)
        assert terminate(process) == 0


def test_log_file_is_appended_to(exemplar: str, tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("before\n")
    port = free_port()
    with (
        path.open("a") as log,
        shell(
            'exec "$@"', "echoserver", "-b", exemplar, "--port", str(port), stderr=log
        ) as process,
    ):
        assert wire.eventually(lambda: '"listening"' in path.read_text())
        log.write("between\n")
        log.flush()
        assert terminate(process) == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert "between" in lines
    assert '"listening"' in lines[1]
    assert '"stopped"' in lines[-1]
