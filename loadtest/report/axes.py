"""Axes of charts, which map values to places and to the texts beside them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 440

CHARACTER = 7.6  # about its width, in a wide font


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis, which maps values to places and to the texts beside them."""

    low: float
    high: float
    ticks: Sequence[float]
    form: Callable[[float], str]
    logarithmic: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Return the place of a value between the two ends of the axis."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = (math.log10(max(x, 1e-12)) for x in (value, low, high))
        share = (value - low) / (high - low) if high > low else 0.5
        return start + min(1.0, max(0.0, share)) * (end - start)


def linear(highest: float, form: Callable[[float], str]) -> Axis:
    """Return an axis from 0, with round ticks."""
    step = 10 ** math.floor(math.log10(highest or 1))
    step = next(step * part for part in (0.2, 0.5, 1, 2, 5) if highest / (step * part) <= 5)  # noqa: PLR2004 - five ticks fit
    count = max(1, math.ceil(highest / step - 1e-9))
    return Axis(0.0, step * count, [step * number for number in range(count + 1)], form)


def logarithmic(values: Sequence[float], form: Callable[[float], str]) -> Axis:
    """Return an axis of whole powers of ten around values that are more than 0."""
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values)) - 1e-9))
    ticks = [10.0**power for power in range(low, high + 1)]
    return Axis(ticks[0], ticks[-1], ticks, form, logarithmic=True)


def steps(values: Sequence[float], form: Callable[[float], str]) -> Axis:
    """Return an axis with a tick at each of `values`; it is logarithmic if all are above 0."""
    ticks = sorted(set(values))
    return Axis(ticks[0], ticks[-1], ticks, form, logarithmic=ticks[0] > 0)


def draw_x_axis(axis: Axis, left: float, right: float, bottom: float, top: float) -> Markup:
    """Draw an axis along the bottom, with its grid."""
    places = [axis.place(tick, left, right) for tick in axis.ticks]
    parts = [
        Markup('<path class="grid" d="M{} {}V{}"/>').format(svg_number(x), top, svg_number(bottom))
        for x in places
    ]
    parts += [
        Markup('<text class="tick" x="{}" y="{}">{}</text>').format(
            svg_number(x), svg_number(bottom + 16), text
        )
        for x, text in _non_overlapping(
            [(x, axis.form(tick)) for x, tick in zip(places, axis.ticks, strict=True)]
        )
    ]
    return Markup("").join(parts)


def _non_overlapping(texts: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return texts that fit into the drawing without touching each other, and their middles.

    The first and the last are kept, because they show the range of the axis.
    """
    inside = []
    for x, text in texts:
        half = text_width(text) / 2
        inside.append((min(max(x, half), WIDTH - half), text))
    if len(inside) < 2:  # noqa: PLR2004 - the first is the last
        return inside
    first, *between, last = inside
    middles = [first]
    for one in between:
        if _is_clear_of(middles[-1], one) and _is_clear_of(one, last):
            middles.append(one)
    return [*middles, last] if _is_clear_of(middles[-1], last) else [last]


def _is_clear_of(one: tuple[float, str], other: tuple[float, str]) -> bool:
    """Tell whether a text ends before the other begins."""
    return one[0] + text_width(one[1]) / 2 + CHARACTER / 2 <= other[0] - text_width(other[1]) / 2


def draw_y_axis(axis: Axis, left: float, right: float, bottom: float, top: float) -> Markup:
    """Draw an axis along the left side, with its grid."""
    parts = [
        Markup(
            '<path class="grid" d="M{left} {y}H{right}"/>'
            '<text class="side" x="{x}" y="{text}">{tick}</text>'
        ).format(
            left=svg_number(left),
            right=svg_number(right),
            y=svg_number(axis.place(tick, bottom, top)),
            x=svg_number(left - 5),
            text=svg_number(axis.place(tick, bottom, top) + 4),
            tick=axis.form(tick),
        )
        for tick in axis.ticks
    ]
    return Markup("").join(parts)


def svg_number(value: float, digits: int = 1) -> str:
    """Return a number for SVG, without trailing zeros."""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".")


def text_width(text: str) -> float:
    """Return the approximate width of a text, in a wide font."""
    return len(text) * CHARACTER


def percent_tick(x: float) -> str:
    """Return the percentile at `x`: one in `x` messages is slower."""
    return f"{100 - 100 / x:.6g}" if x > 1 else "0"


def rate_tick(value: float) -> str:
    """Return a rate, in messages per second, in the short form of an axis."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def time_tick(microseconds: float) -> str:
    """Return a time in the short form of an axis."""
    if not microseconds:
        return "0"
    for unit, size in (("s", 1e6), ("ms", 1e3), ("µs", 1)):
        if microseconds >= size:
            return f"{microseconds / size:g} {unit}"
    return f"{microseconds:g} µs"
