"""What is said of a failure leads to the mistake; tests/golden has some of it, as it is shown."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.checking import specimen
from tests.support.launching import run

GOLDEN = Path(__file__).parents[1] / "golden" / "check"

CASES = [
    ("another_port", "L1", "echo"),
    ("ignores_sigterm", "L4", "echo"),
    ("decodes_chunks", "S1", "echo"),
    ("decodes_chunks", "S2", "echo"),
    ("waits_for_newline", "S3", "echo"),
    ("greets", "S4", "echo"),
    ("extra_byte", "S5", "echo"),
    ("parent_keeps_socket", "C1", "echo"),
    ("spins_at_the_end", "C6", "echo"),
    ("zombies", "C7", "echo"),
    ("iterative", "N1", "echo"),
    ("pool_of_eight", "N4", "echo"),
    ("backlog_of_five", "N5", "echo"),
    ("buffers_without_bound", "N6", "echo"),
    ("http_server", "L2", "echo"),
    ("forgets_to_break", "L2", "echo"),
]
# How many, and which of them, is chance.
CHANCE = {"C6", "C7", "N5", "S5"}


def _without_chance(text: str) -> str:
    """Return a report without what differs from run to run, and from machine to machine."""
    text = text.replace(sys.executable, "python").replace(f"{GOLDEN.parents[1]}/", "tests/")
    text = "\n".join(
        line for line in text.splitlines() if not line.startswith(("       |", "       process"))
    )
    for pattern, instead in (
        (r" {2,}\d+\.\d{3} s  ", "  #.### s  "),
        (r"\d+\.\d s\)", "#.# s)"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:#"),
        (r"grew\s+by\s+\d+\s+MiB", "grew by # MiB"),
        (r"sent\s+\d+\s+MiB", "sent # MiB"),
        (r"has sent [\d,]+ bytes", "has sent # bytes"),
        (r"sent [\d,]{8,} bytes in \d+ pieces", "sent # bytes in # pieces"),
        (r"\d\.\d\s+CPUs", "#.# CPUs"),
        (r"\(before:\s+\d\.\d\)", "(before: #.#)"),
    ):
        text = re.sub(pattern, instead, text)
    return text + "\n"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("name", "check", "expect"), CASES)
def test_a_failure_is_explained(
    name: str, check: str, expect: str, request: pytest.FixtureRequest
) -> None:
    only = ["--only", f"L1,L2,{check}", "--timeout", "3s", "--expect", expect]
    done = run("echoload", "check", *only, "--", *specimen(name))
    assert done.returncode == 1, done.stderr
    report = done.stdout[done.stdout.index(":( ") :]
    path = GOLDEN / f"{check}-{name}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(_without_chance(report))
    wanted = path.read_text()
    found, end = _without_chance(report), "the server then:"
    if check in CHANCE:
        end = "what happened:"
        found, wanted = (re.sub(r"[A-Z]?\d+", "#", text) for text in (found, wanted))
    assert found.partition(end)[0].split() == wanted.partition(end)[0].split()
