"""A chart of the page, and what all of them say of a row."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from loadtest.results.schema import Row, Spread


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, with a caption, and its figures as a table."""

    title: str
    drawing: Markup
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def number_targets(rows: list[Row]) -> list[tuple[int, Row]]:
    """Return rows with the number of their target, which has the same colour in all charts."""
    names = list(dict.fromkeys(row["target"] for row in rows))
    return [(names.index(row["target"]), row) for row in rows]


def short_label(row: Row) -> str:
    """Return a target with what a sweep set, as it fits beside a bar."""
    return " ".join([row["target"], *(str(value) for value in row["sweep"].values())])


def served_share(row: Row) -> str:
    """Return how many of the clients were served; empty: all of them."""
    return f"{row['connections_served']} of {row['connections']}" if row["starved"] else ""


def served_note(partial: str) -> str:
    """Return what to add to a figure of which not all clients were served."""
    return f"; {partial} clients served" if partial else ""


def interval_ends(spread: Spread) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % interval; a single round has none."""
    several = len(spread["rounds"]) > 1
    return (spread["low"], spread["high"]) if several else (None, None)
