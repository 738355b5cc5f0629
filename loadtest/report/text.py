"""A document as tables on a terminal, or in a file or pipe."""

from typing import TYPE_CHECKING, TextIO

from rich.markup import escape
from rich.table import Table

from loadtest.console import Screen
from loadtest.report.cells import (
    ERRORS_COLUMN,
    HEADINGS,
    RANKING_HEADINGS,
    SERVED_COLUMN,
    bound,
    cells,
    or_dash,
    ranking_cells,
    ratio,
    remarks,
)
from loadtest.results.document import label
from loadtest.results.schema import Document, Row

if TYPE_CHECKING:
    from rich.console import Console

    from loadtest.results.held import HoldResult

_ROW_WIDTH = 120  # characters; on a narrower terminal, each target is a column


def show(document: Document, stream: TextIO | None = None) -> None:
    """Print the tables of a document, and the remarks under them.

    Args:
        document: The measurement.
        stream: Where to print; None: standard output.
    """
    screen = Screen(stream)
    rows = document["results"]
    if screen.width >= _ROW_WIDTH:
        table = Table(header_style="bold")
        for group, name in HEADINGS:
            table.add_column(f"{group}\n{name}", justify="right" if group != "target" else "left")
        for row in rows:
            table.add_row(*_coloured_cells(row))
    else:  # one column per target
        table = Table(show_header=False)
        for line in zip(
            (f"{group} {name}".strip() for group, name in HEADINGS),
            *(_coloured_cells(row) for row in rows),
            strict=True,
        ):
            table.add_row(*line, end_section=line[0] == "target")
        for column in table.columns[1:]:
            column.justify = "right"
    screen.print(table)
    _show_comparisons(screen, document)
    _show_peers(screen, document)
    for row in rows:
        for kind, first in row["first_errors"].items():
            screen.print(f"{label(row)}: first {kind}: {first}", markup=False, highlight=False)
    for remark in remarks(document):
        screen.print(remark, markup=False, highlight=False)


def _coloured_cells(row: Row) -> list[str]:
    line = [escape(cell) for cell in cells(row)]
    for column, bad in ((SERVED_COLUMN, row["starved"]), (ERRORS_COLUMN, row["errors"])):
        if bad:
            line[column] = f"[bold red]{line[column]}[/]"
    return line


def _show_comparisons(screen: "Console", document: Document) -> None:
    for comparison in document["comparison"]:
        sweep = ", ".join(f"{name}={value}" for name, value in comparison["sweep"].items())
        table = Table(header_style="bold", title=sweep or None, title_justify="left")
        reference = comparison["reference"] or "the reference"
        for group, name in RANKING_HEADINGS:
            heading = f"{group}\n{name}".replace("the reference", reference)
            table.add_column(heading, justify="left" if group == "target" else "right")
        for line in ranking_cells(document["results"], comparison):
            table.add_row(*map(escape, line))
        screen.print(table)


def _show_peers(screen: "Console", document: Document) -> None:
    """Print the ratio of each backend to each of its peers."""
    if not document["ratios"]:
        return
    table = Table(header_style="bold")
    table.add_column("backend\n")
    table.add_column("peer\n")
    table.add_column("throughput, times\nmedian [95 %]", justify="right")
    table.add_column("server CPU per message, times\nmedian [95 %]", justify="right")
    limited = {row["target"] for row in document["results"] if row["client_limited"]}
    for backend, peers in document["ratios"].items():
        for peer, figures in peers.items():
            sign = bound(backend, peer, limited)
            table.add_row(
                backend,
                peer,
                escape(ratio(figures.get("throughput"), sign)),
                escape(ratio(figures.get("cpu_us_per_message"))),
            )
    screen.print(table)


def show_hold_results(results: "list[HoldResult]", stream: TextIO | None = None) -> None:
    """Print how many connections each server held, and what they cost it."""
    table = Table(header_style="bold")
    for heading in ("target", "held", "KiB each (PSS)", "accepted in s", "CPU while idle"):
        table.add_column(heading, justify="right" if heading != "target" else "left")
    for result in results:
        count = f"{result.held} of {result.wanted}"
        table.add_row(
            result.target,
            count if result.held == result.wanted else f"[bold red]{count}[/]",
            or_dash(result.bytes_each, lambda value: f"{value / 1024:.1f}"),
            f"{result.seconds:.2f}",
            or_dash(result.cpu_percent_idle, lambda value: f"{value:.1f} %"),
        )
    screen = Screen(stream)
    screen.print(table)
    for result in results:
        if result.ended:
            screen.print(
                f"{result.target}: ended early: {result.ended}", markup=False, highlight=False
            )
