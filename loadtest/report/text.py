"""A document as tables on a terminal, or in a file or pipe."""

import errno
import os
import sys
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest.report.cells import (
    ERRORS,
    HEADINGS,
    RANKED,
    SERVED,
    bound,
    cells,
    label,
    or_dash,
    ranked,
    ratio,
    remarks,
)
from loadtest.results import Document, Row

if TYPE_CHECKING:
    from loadtest.hold import Held

_NO_BOUND = 1000  # a file or a pipe has no width; the table takes what it needs
_WIDTH_OF_A_ROW = 120  # below it, targets stand side by side


class Screen(Console):
    """Standard output, or standard error; what reads it may close it, which is for us to notice."""

    def __init__(self, stream: TextIO | None = None, width: int = _NO_BOUND) -> None:
        stream = stream or sys.stdout
        super().__init__(file=stream, width=None if stream.isatty() else width)

    def on_broken_pipe(self) -> None:
        """Let whoever prints know, instead of ending the program."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def show(found: Document, stream: TextIO | None = None) -> None:
    """Print the tables, and under them what a reader must know to read them.

    Args:
        found: What was measured.
        stream: Where; None: on standard output.
    """
    console = Screen(stream)
    rows = found["results"]
    if console.width >= _WIDTH_OF_A_ROW:
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
    console.print(table)
    _show_comparisons(console, found)
    _show_peers(console, found)
    for row in rows:
        for kind, first in row["first_errors"].items():
            console.print(f"{label(row)}: first {kind}: {first}", markup=False, highlight=False)
    for remark in remarks(found):
        console.print(remark, markup=False, highlight=False)


def _coloured(row: Row) -> list[str]:
    line = [escape(cell) for cell in cells(row)]
    for column, bad in ((SERVED, row["starved"]), (ERRORS, row["errors"])):
        if bad:
            line[column] = f"[bold red]{line[column]}[/]"
    return line


def _show_comparisons(console: Console, found: Document) -> None:
    for comparison in found["comparison"]:
        sweep = ", ".join(f"{name}={value}" for name, value in comparison["sweep"].items())
        table = Table(header_style="bold", title=sweep or None, title_justify="left")
        for group, name in RANKED:
            heading = f"{group}\n{name}".replace("the reference", comparison["reference"])
            table.add_column(heading, justify="left" if group == "target" else "right")
        for line in ranked(found, comparison):
            table.add_row(*map(escape, line))
        console.print(table)


def _show_peers(console: Console, found: Document) -> None:
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
    console.print(table)


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
