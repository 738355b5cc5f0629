"""What came of the matrix: JSON as it runs, and from that the table in docs/reliability.md.

::

    python -m tests.stress.report --by "make stress" build/stress.jsonl > docs/reliability.md
"""

import argparse
import json
import os
import platform
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BUILTIN
from tests.stress.model import Cell, Fault, cells, every

SCHEMA = 1

_INTRODUCTION = """\
# Reliability

Every fault that this server is put through, over every backend, in one process and in two workers,
plain and over TLS, as far as they apply: at full size once (one process, or two workers where the
fault is about workers, and TLS only where it is about that), in a smaller form otherwise.

In all of them: what came back was an exact prefix of what was sent; descriptors, threads,
children and memory returned to where they were; a client that had connected first was served
within a second all along; there was no traceback, and the right counter had moved (each as far as
it applies: `tests/stress`).

A case that nothing can fail proves nothing: so each is also put to a server with the defect, and
must fail (`test_a_server_with_the_defect_fails`). For 26 to 28, where a server must not start,
that is one that has no reason to."""

_LEGEND = """\
In how many cells each backend survived each fault; "-": it cannot have that one. Below, the figures
of the case at full size; "+3": so many cells besides."""


def asked_for(config: pytest.Config) -> bool:
    """Tell whether all of it is run, at full size."""
    return "stress" in (config.option.markexpr or "")


def note(config: pytest.Config, cell: Cell, figure: str, seconds: float) -> None:
    """Write down what came of a case."""
    file = config.getoption("--stress-results")
    if not file:
        return
    line = {
        "schema": SCHEMA,
        "fault": cell.fault.number,
        "title": cell.fault.title,
        "backend": cell.backend,
        "workers": cell.workers or 1,
        "master": cell.workers is not None,
        "tls": cell.tls,
        "full": cell.central and asked_for(config),
        "figure": figure,
        "seconds": round(seconds, 2),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
    }
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with Path(file).open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def table(found: list[dict[str, Any]], command: str) -> str:
    """Return the page, of what a command found."""
    by_fault: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        by_fault[one["fault"]][one["backend"]].append(one)
    first = found[0]
    page = _INTRODUCTION.splitlines()
    where = f"Python {first['python']}, Linux {first['kernel']}, {first['cpus']} CPUs"
    page += ["", f"{where}. Made by", "", "```", command, "```"]
    page += ["", f"{len(found):,} of {len(list(cells())):,} cells held.", "", *_matrix(found)]
    page += ["", *_LEGEND.splitlines()]
    for fault in every():
        if fault.number not in by_fault:
            continue
        about = " ".join((fault.run.__doc__ or "").split())
        page += [
            "",
            f"## {_heading(fault)}",
            "",
            about,
            "",
            "| backend | what was seen |",
            "|---|---|",
        ]
        for backend in BUILTIN:
            cases = by_fault[fault.number].get(backend, [])
            if not cases:
                continue
            main = [one for one in cases if one["full"]]
            others = len(cases) - len(main)
            figure = main[0]["figure"] if main else ""
            page.append(f"| {backend} | {figure}{f' (+{others})' if others else ''} |")
    return "\n".join(page) + "\n"


def _matrix(found: list[dict[str, Any]]) -> list[str]:
    """Return the overview: in how many cells a backend survived a fault."""
    tried = Counter((one.fault.number, one.backend) for one in cells())
    held = Counter((one["fault"], one["backend"]) for one in found)
    rows = [f"| fault | {' | '.join(BUILTIN)} |", f"|---|{'---:|' * len(BUILTIN)}"]
    for fault in every():
        heading = _heading(fault)
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        row = [f"[{heading}](#{anchor})"]
        for backend in BUILTIN:
            of, number = tried[fault.number, backend], held[fault.number, backend]
            row.append("-" if not of else str(of) if number == of else f"**{number} of {of}**")
        rows.append(f"| {' | '.join(row)} |")
    return rows


def _heading(fault: Fault) -> str:
    return f"{fault.number}. {fault.title}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the page of what was found.")
    parser.add_argument("--by", required=True, help="the command that found it")
    parser.add_argument("files", nargs="+", type=Path)
    asked = parser.parse_args()
    lines = [line for file in asked.files for line in file.read_text().splitlines()]
    sys.stdout.write(table([json.loads(line) for line in lines], asked.by))
