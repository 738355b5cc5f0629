"""The marks of charts: bars, points, and lines through points."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart: a value and its interval."""

    label: str
    value: float
    low: float
    high: float
    tip: str
    series: int
    """The number of its colour, which is the same in all charts."""
    bound: str = ""
    """The text on the bar of a value that is a lower bound; empty: it is not one."""
    partial: str = ""
    """How many of the clients were served ("64 of 400"); empty: all of them."""

    @property
    def note(self) -> str:
        """The text on the bar."""
        return ", ".join(filter(None, (self.bound, self.partial)))


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a line: a value at a place on the x axis."""

    x: float
    y: float
    low: float | None = None
    """The lower end of its 95 % interval; None: there is none."""
    high: float | None = None
    bound: bool = False
    """The value is a lower bound."""
    partial: str = ""
    """How many of the clients were served ("64 of 400"); empty: all of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points in the order of x."""

    label: str
    points: Sequence[Point]
    series: int
    short: str = ""
    """The text at its end; empty: the label."""
