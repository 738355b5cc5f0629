"""A document as tables on a terminal, or in a file or pipe."""

from typing import TYPE_CHECKING, TextIO

from rich.markup import escape
from rich.table import Table

from loadtest.console import Screen
from loadtest.report.cells import (
    ERRORS,
    HEADINGS,
    RANKED,
    SERVED,
    bound,
    cells,
    or_dash,
    ranked,
    ratio,
    remarks,
)
from loadtest.results.document import label
from loadtest.results.schema import Document, Row

if TYPE_CHECKING:
    from rich.console import Console

    from loadtest.results.held import Held

_WIDTH_OF_A_ROW = 120  # below it, targets stand side by side


def show(found: Document, stream: TextIO | None = None) -> None:
    """Print the tables, and under them what a reader must know to read them.

    Args:
        found: What was measured.
        stream: Where; None: on standard output.
    """
    shown = Screen(stream)
    rows = found["results"]
    if shown.width >= _WIDTH_OF_A_ROW:
        table = Table(header_style="bold")
        for group, name in HEADINGS:
            table.add_column(f"{group}\n{name}", justify="right" if group != "target" else "left")
        for row in rows:
            table.add_row(*_coloured(row))
    else:  # a target a column
        table = Table(show_header=False)
        for line in zip(
            (f"{group} {name}".strip() for group, name in HEADINGS),
            *(_coloured(row) for row in rows),
            strict=True,
        ):
            table.add_row(*line, end_section=line[0] == "target")
        for column in table.columns[1:]:
            column.justify = "right"
    shown.print(table)
    _show_comparisons(shown, found)
    _show_peers(shown, found)
    for row in rows:
        for kind, first in row["first_errors"].items():
            shown.print(f"{label(row)}: first {kind}: {first}", markup=False, highlight=False)
    for remark in remarks(found):
        shown.print(remark, markup=False, highlight=False)


def _coloured(row: Row) -> list[str]:
    line = [escape(cell) for cell in cells(row)]
    for column, bad in ((SERVED, row["starved"]), (ERRORS, row["errors"])):
        if bad:
            line[column] = f"[bold red]{line[column]}[/]"
    return line


def _show_comparisons(shown: "Console", found: Document) -> None:
    for comparison in found["comparison"]:
        sweep = ", ".join(f"{name}={value}" for name, value in comparison["sweep"].items())
        table = Table(header_style="bold", title=sweep or None, title_justify="left")
        reference = comparison["reference"] or "the reference"
        for group, name in RANKED:
            heading = f"{group}\n{name}".replace("the reference", reference)
            table.add_column(heading, justify="left" if group == "target" else "right")
        for line in ranked(found["results"], comparison):
            table.add_row(*map(escape, line))
        shown.print(table)


def _show_peers(shown: "Console", found: Document) -> None:
    """Print what each backend is, measured by its peers."""
    if not found["ratios"]:
        return
    table = Table(header_style="bold")
    table.add_column("backend\n")
    table.add_column("peer\n")
    table.add_column("throughput, times\nmedian [95 %]", justify="right")
    table.add_column("server CPU per message, times\nmedian [95 %]", justify="right")
    limited = {row["target"] for row in found["results"] if row["client_limited"]}
    for backend, peers in found["ratios"].items():
        for peer, figures in peers.items():
            sign = bound(backend, peer, limited)
            table.add_row(
                backend,
                peer,
                escape(ratio(figures.get("throughput"), sign)),
                escape(ratio(figures.get("cpu_us_per_message"))),
            )
    shown.print(table)


def show_held(found: "list[Held]", stream: TextIO | None = None) -> None:
    """Print what servers held."""
    table = Table(header_style="bold")
    for heading in ("target", "held", "KiB each (PSS)", "accepted in s", "CPU while idle"):
        table.add_column(heading, justify="right" if heading != "target" else "left")
    for one in found:
        held = f"{one.held} of {one.wanted}"
        table.add_row(
            one.target,
            held if one.held == one.wanted else f"[bold red]{held}[/]",
            or_dash(one.bytes_each, lambda value: f"{value / 1024:.1f}"),
            f"{one.seconds:.2f}",
            or_dash(one.cpu_percent_idle, lambda value: f"{value:.1f} %"),
        )
    screen = Screen(stream)
    screen.print(table)
    for one in found:
        if one.ended:
            screen.print(f"{one.target}: ended early: {one.ended}", markup=False, highlight=False)
