"""Colours: one decision for all three commands."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

import echoserver
from clients.address import format_address
from echoserver.terminal import has_colours, has_motion
from tests.support.launching import Terminal, run


@pytest.fixture(scope="module")
def terminal() -> Iterator[IO[str]]:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as stream:
        yield stream
    os.close(leader)


@pytest.mark.parametrize(
    ("environment", "at_a_terminal", "elsewhere"),
    [
        ({"TERM": "xterm"}, True, False),
        ({}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "0"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, False),
        ({"TERM": "xterm", "CLICOLOR": "0"}, False, False),
        ({"TERM": "xterm", "CLICOLOR": "1"}, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
        ({"CLICOLOR_FORCE": "1"}, True, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_when_there_are_colours(
    terminal: IO[str],
    tmp_path: Path,
    environment: dict[str, str],
    at_a_terminal: bool,  # noqa: FBT001 - a parameter of the case
    elsewhere: bool,  # noqa: FBT001
) -> None:
    assert has_colours(terminal, environment) == at_a_terminal
    with (tmp_path / "file").open("w") as file:
        assert has_colours(file, environment) == elsewhere
        assert not has_motion(file, environment)
    assert has_colours(None, environment) == has_colours(file, environment) == elsewhere
    assert has_motion(terminal, environment) == (environment.get("TERM") != "dumb")


def commands(address: str) -> list[tuple[str, ...]]:
    """Return what shows something in colours."""
    return [
        ("echoserver", "--port", "0"),
        ("echoload", "check", "--only", "L1", address),
        ("echoload", "doctor"),
        ("echoload", "run", "-c", "2", "-n", "10", address),
    ]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)],
    ids=["dumb", "empty", "no_color"],
)
def test_every_command_decides_alike(
    echo_server: echoserver.SpawnedServer, variables: dict[str, str], *, coloured: bool
) -> None:
    for words in commands(format_address(*echo_server.address)):
        terminal = Terminal(*words, env={"COLUMNS": "200", **variables})
        if words[0] == "echoserver":
            shown = terminal.read_until("listening")
            terminal.process.send_signal(signal.SIGTERM)
            shown += terminal.read_all()
        else:
            shown = terminal.read_all()
        assert bool(re.search(r"\x1b\[[\d;]*m", shown)) == coloured, (words, shown)
        if variables.get("TERM") == "dumb":
            assert "\x1b" not in shown, words
        assert terminal.close() == 0, shown


@pytest.mark.ci
def test_a_file_gets_colours_only_on_demand(echo_server: echoserver.SpawnedServer) -> None:
    words = ("echoload", "check", "--only", "L1", format_address(*echo_server.address))
    assert "\x1b" not in run(*words).stdout
    assert "\x1b[32m" in run(*words, env={"FORCE_COLOR": "1"}).stdout
    assert "\x1b[32m" in run("echoload", "doctor", env={"FORCE_COLOR": "1"}).stdout


@pytest.mark.ci
def test_progress_at_a_dumb_terminal_is_lines(echo_server: echoserver.SpawnedServer) -> None:
    """A bar that cannot be drawn over itself was not drawn at all."""
    words = ("compare", "--backends", "thread", "--rounds", "1", "-d", "500ms", "-c", "2")
    terminal = Terminal("echoload", *words, env={"TERM": "dumb"})
    assert "round 1/1  thread: " in terminal.read_all()
    assert terminal.close() == 0
