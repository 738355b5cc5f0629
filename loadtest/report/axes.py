"""Axes of charts: from values to places, and to what is written beside them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 440

CHARACTER = 7.6  # about the width of one, in a wide font


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places, and to what is written beside them."""

    low: float
    high: float
    ticks: Sequence[float]
    form: Callable[[float], str]
    logarithmic: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Return where a value is, between two ends."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = (math.log10(max(x, 1e-12)) for x in (value, low, high))
        share = (value - low) / (high - low) if high > low else 0.5
        return start + min(1.0, max(0.0, share)) * (end - start)


def linear(highest: float, form: Callable[[float], str]) -> Axis:
    """Return an axis from 0, with round ticks."""
    step = 10 ** math.floor(math.log10(highest or 1))
    step = next(step * part for part in (0.2, 0.5, 1, 2, 5) if highest / (step * part) <= 5)  # noqa: PLR2004 - so many ticks fit
    count = max(1, math.ceil(highest / step - 1e-9))
    return Axis(0.0, step * count, [step * number for number in range(count + 1)], form)


def logarithmic(values: Sequence[float], form: Callable[[float], str]) -> Axis:
    """Return an axis of whole powers of ten around values that are more than 0."""
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values)) - 1e-9))
    ticks = [10.0**power for power in range(low, high + 1)]
    return Axis(ticks[0], ticks[-1], ticks, form, logarithmic=True)


def steps(values: Sequence[float], form: Callable[[float], str]) -> Axis:
    """Return an axis with a tick at each of `values`; logarithmic where all are more than 0."""
    ticks = sorted(set(values))
    return Axis(ticks[0], ticks[-1], ticks, form, logarithmic=ticks[0] > 0)


def draw_across(axis: Axis, left: float, right: float, bottom: float, top: float) -> Markup:
    """Draw an axis along the bottom, with its grid."""
    places = [axis.place(tick, left, right) for tick in axis.ticks]
    parts = [
        Markup('<path class="grid" d="M{} {}V{}"/>').format(rounded(x), top, rounded(bottom))
        for x in places
    ]
    parts += [
        Markup('<text class="tick" x="{}" y="{}">{}</text>').format(
            rounded(x), rounded(bottom + 16), text
        )
        for x, text in _side_by_side(
            [(x, axis.form(tick)) for x, tick in zip(places, axis.ticks, strict=True)]
        )
    ]
    return Markup("").join(parts)


def _side_by_side(texts: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return the middles of texts, inside the drawing, without those that would touch another.

    The first and the last stay: they say how far the axis goes.
    """
    inside = []
    for x, text in texts:
        half = text_width(text) / 2
        inside.append((min(max(x, half), WIDTH - half), text))
    if len(inside) < 2:  # noqa: PLR2004 - the first is the last
        return inside
    first, *between, last = inside
    kept = [first]
    for one in between:
        if _clear(kept[-1], one) and _clear(one, last):
            kept.append(one)
    return [*kept, last] if _clear(kept[-1], last) else [last]


def _clear(one: tuple[float, str], other: tuple[float, str]) -> bool:
    """Tell whether a text ends before the other begins."""
    return one[0] + text_width(one[1]) / 2 + CHARACTER / 2 <= other[0] - text_width(other[1]) / 2


def draw_up(axis: Axis, left: float, right: float, bottom: float, top: float) -> Markup:
    """Draw an axis along the left side, with its grid."""
    parts = [
        Markup(
            '<path class="grid" d="M{left} {y}H{right}"/>'
            '<text class="side" x="{x}" y="{text}">{tick}</text>'
        ).format(
            left=rounded(left),
            right=rounded(right),
            y=rounded(axis.place(tick, bottom, top)),
            x=rounded(left - 5),
            text=rounded(axis.place(tick, bottom, top) + 4),
            tick=axis.form(tick),
        )
        for tick in axis.ticks
    ]
    return Markup("").join(parts)


def rounded(value: float, digits: int = 1) -> str:
    """Return a number as SVG has it, without zeros at its end."""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".")


def text_width(text: str) -> float:
    """Return about the width of a text, in a wide font."""
    return len(text) * CHARACTER


def percent_tick(x: float) -> str:
    """Return the percentile that `x` stands for: one of so many messages is slower."""
    return f"{100 - 100 / x:.6g}" if x > 1 else "0"


def rate_tick(value: float) -> str:
    """Return messages a second as short as an axis needs them."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def time_tick(microseconds: float) -> str:
    """Return a time as short as an axis needs it."""
    if not microseconds:
        return "0"
    for unit, size in (("s", 1e6), ("ms", 1e3), ("µs", 1)):
        if microseconds >= size:
            return f"{microseconds / size:g} {unit}"
    return f"{microseconds:g} µs"
