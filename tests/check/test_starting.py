"""A command that cannot be run, or a build that does not end: what is said names the cause."""

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checking import check
from tests.support.launching import command


def script(path: Path, content: bytes, mode: int = 0o755) -> list[str]:
    path.write_bytes(content)
    path.chmod(mode)
    return [str(path), "{port}"]


Make = Callable[[Path], list[str]]
CASES: dict[str, tuple[Make, str, str]] = {
    "CRLF": (
        lambda path: script(path, b"#!/bin/sh\r\nexit\r\n"),
        "its first line ends in CRLF, so the system looks for '/bin/sh\\r'",
        "line ends of Unix",
    ),
    "no such interpreter": (
        lambda path: script(path, b"#!/no/such/python3\n"),
        "what its first line names is not: '/no/such/python3'",
        "After #!",
    ),
    "not executable": (
        lambda path: script(path, b"#!/bin/sh\n", 0o644),
        "it is a file that is not executable",
        "chmod +x",
    ),
    "not a program": (
        lambda path: script(path, b"print('hello')\n"),
        "does not begin with #!",
        "python3",
    ),
    "a folder": (lambda path: [str(path.parent)], "it is a folder", "Name the program in it."),
    "nothing": (lambda path: [str(path)], "No such file or directory", "in PATH"),
}


@pytest.mark.parametrize(("make", "message", "hint"), CASES.values(), ids=list(CASES))
def test_a_command_that_cannot_be_run(make: Make, message: str, hint: str, tmp_path: Path) -> None:
    (one,) = check(make(tmp_path / "server"), "--only", "L1")["checks"]
    assert one["status"] == "failed"
    assert message in one["message"]
    assert hint in one["hint"]


@pytest.mark.parametrize(
    ("build", "message"),
    [("sleep 60", "was not done within"), ("exit 3", "failed: it ended with exit code 3")],
)
def test_a_build_is_named_whatever_becomes_of_it(build: str, message: str) -> None:
    found = check(["true"], "--only", "L1", "--build", build, "--total-timeout", "2s")
    (one,) = found["checks"]
    assert one["status"] == "failed"
    assert one["message"].startswith(f"the build, {build!r}, {message}")
    assert "by hand" in one["hint"]


def graded_with_few_descriptors(*words: str) -> "subprocess.CompletedProcess[str]":
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    return subprocess.run(
        [command("echoload"), "check", *words, "127.0.0.1:1"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_descriptors_of_this_machine_are_asked_for_by_the_checks_that_need_them() -> None:
    crowd = graded_with_few_descriptors("--only", "N4")
    assert crowd.returncode == 2
    assert "400 connections need 432 file descriptors" in crowd.stderr
    assert "ask for fewer with --clients" in crowd.stderr
    few = graded_with_few_descriptors("--only", "L1")
    assert few.returncode == 1, few.stderr
    assert "refused" in few.stdout
