"""What docs/grading.md says is so."""

import json
import re
from pathlib import Path

import pytest

from loadtest.check.catalogue import every
from loadtest.peers import PEERS
from tests.support.checking import check, failed
from tests.support.launching import run

GRADING = Path(__file__).parents[2] / "docs" / "grading.md"


def _between(start: str, end: str) -> list[str]:
    text = GRADING.read_text()
    return text.partition(f"<!-- {start} -->\n")[2].partition(f"<!-- {end} -->")[0].splitlines()


def _rows(name: str) -> list[list[str]]:
    lines = _between(f"table: {name}", "end of table")[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_check_is_in_the_table() -> None:
    assert _rows("echoload check") == [
        [one.id, f"{one.weight:g}{' (bonus)' if one.bonus else ''}", one.title] for one in every()
    ]


def test_the_table_of_formats_is_complete() -> None:
    help_ = run("echoload", "check", "--help").stdout
    formats = re.search(r"--format \[([a-z0-9|\s]+)\]", help_)
    assert formats is not None
    named = re.sub(r"\s", "", formats[1]).split("|")
    assert re.findall(r"^\| `(\w+)` \|", GRADING.read_text(), re.MULTILINE) == [
        *(
            "text",
            "json",
            "junit",
            "tap",
            "markdown",
            "html",
            "gradescope",
            "classroom50",
            "autolab",
        )
    ]
    assert set(named) == set(re.findall(r"^\| `(\w+)` \|", GRADING.read_text(), re.MULTILINE))


def test_the_report_in_the_docs_is_one() -> None:
    lines = _between("report: tutorial_thread", "end of report")
    titles = {f"{one.id} {one.title}" for one in every()}
    failures = [line[3:] for line in lines if line.startswith(":( ")]
    assert [line.split()[0] for line in failures] == ["C1", "C6", "C7", "N5", "N9"]
    assert set(failures) <= titles


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_fails_what_the_table_says(name: str, tmp_path: Path) -> None:
    peer = PEERS[name]
    if peer.missing:
        pytest.skip(f"{peer.missing} is not installed")
    wrong = {row[0].strip("`"): set(row[1].split()) for row in _rows("peers")}
    assert wrong.keys() <= PEERS.keys()
    found = check([*peer.command(tmp_path), "{port}"], timeout=280)
    assert set(failed(found)) == wrong.get(name, set()), failed(found)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_report_in_the_docs_is_what_is_said(tmp_path: Path) -> None:
    command = next(
        line for line in GRADING.read_text().splitlines() if "tutorial_thread.py" in line
    )
    words = command.replace(".venv/bin/", "").split()
    path = tmp_path / "grade.json"
    done = run(
        *(
            "echoload",
            "check",
            "--expect",
            "upper",
            "--format",
            "json",
            "--output",
            str(path),
            "--",
        ),
        *(str(Path(word)) for word in words[words.index("--") + 1 :]),
        timeout=280,
    )
    assert done.returncode == 1
    told = {
        line[3:5]
        for line in _between("report: tutorial_thread", "end of report")
        if line[:2] == ":("
    }
    assert set(failed(json.loads(path.read_text()))) == told
