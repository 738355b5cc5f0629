"""The page of results says what held, and does not hide what did not."""

import re

from tests.stress import report
from tests.stress.model import Cell, cells


def _line(cell: Cell) -> dict[str, object]:
    return {
        "fault": cell.fault.number,
        "backend": cell.backend,
        "full": cell.central,
        "figure": f"figure of {cell.id}",
        "python": "3.11",
        "kernel": "6.1",
        "cpus": 2,
    }


def test_a_cell_that_did_not_hold_shows() -> None:
    every = list(cells())
    lost = next(one for one in every if one.fault.number == 1 and one.tls)
    page = report.table([_line(one) for one in every if one is not lost], "make stress")
    assert f"{len(every) - 1:,} of {len(every):,} cells held" in page
    row = next(line for line in page.splitlines() if line.startswith("| [1. "))
    assert row.count("**") == 2
    assert "**3 of 4**" in row
    assert page.count(" of 4**") == 1


def test_each_row_of_the_overview_leads_to_its_figures() -> None:
    every = list(cells())
    page = report.table([_line(one) for one in every], "make stress")
    assert "**" not in page
    assert "[6. connect + FIN](#6-connect--fin)" in page  # as GitHub calls that heading
    led = re.findall(r"\| \[([^]]+)\]\(#[^)]+\) \|", page)
    assert led == re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert len(led) == len({one.fault.number for one in every})
    for one in every:
        if one.central:
            assert f"figure of {one.id}" in page
