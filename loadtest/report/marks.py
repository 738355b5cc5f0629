"""What charts draw: bars, points, and lines of them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """A value, and how sure it is."""

    label: str
    value: float
    low: float
    high: float
    tip: str
    series: int
    """Which colour: the same in all charts."""
    bound: str = ""
    """What the value is a lower bound of, as it is written on the bar; empty: it is not one."""
    partial: str = ""
    """How many of the clients were served ("64 of 400"); empty: all of them."""

    @property
    def note(self) -> str:
        """What is written on it."""
        return ", ".join(filter(None, (self.bound, self.partial)))


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a place of the x axis."""

    x: float
    y: float
    low: float | None = None
    """The ends of its 95 % interval; None: there is none."""
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
    """What stands at its end; empty: the label."""
