"""Charts as SVG: bars with intervals, and lines; nothing but strings, and no script.

The drawing is small, and grows with the page: on a phone it is about as wide as its viewBox, so
that text stays readable. Colours are names of CSS variables, which the page sets for light and
dark.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_BAR, _GAP = 16, 10
_LABEL = 128  # of bars
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
COLOURS = 8


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
    bound: bool = False
    """The value is a lower bound."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points in the order of x."""

    label: str
    points: Sequence[tuple[float, float]]
    series: int


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
        share = (value - low) / (high - low) if high > low else 0.0
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


def bars(values: Sequence[Bar], form: Callable[[float], str], title: str) -> Markup:
    """Draw horizontal bars with 95 % intervals."""
    axis = linear(max((bar.high for bar in values), default=1.0), form)
    height = _TOP + len(values) * (_BAR + _GAP) + _BOTTOM - 14
    left, right = _LABEL, WIDTH - _RIGHT - 8
    parts = [_across(axis, left, right, height - _BOTTOM + 14, _TOP)]
    for number, bar in enumerate(values):
        y = _TOP + number * (_BAR + _GAP) + _GAP / 2
        end, low, high = (axis.place(x, left, right) for x in (bar.value, bar.low, bar.high))
        middle = y + _BAR / 2
        parts.append(
            Markup(
                '<g class="mark" data-series="{series}" tabindex="0" data-tip="{tip}">'
                '<text class="name" x="{name}" y="{text}">{label}</text>'
                '<rect class="hit" x="0" y="{hit}" width="{width}" height="{tall}"/>'
                '<rect class="bar{bound}" fill="var(--s{colour})" x="{left}" y="{y}" '
                'width="{long}" height="{bar}" rx="2"/>'
                '<path class="whisker" d="M{low} {middle}H{high}M{low} {up}v8M{high} {up}v8"/></g>'
            ).format(
                series=bar.series,
                tip=bar.tip,
                name=left - 6,
                text=_n(middle + 4),
                label=_shortened(bar.label),
                hit=_n(y - _GAP / 2),
                width=WIDTH,
                tall=_BAR + _GAP,
                bound=" bound" if bar.bound else "",
                colour=bar.series % COLOURS,
                left=left,
                y=_n(y),
                long=_n(end - left),
                bar=_BAR,
                low=_n(low),
                high=_n(high),
                middle=_n(middle),
                up=_n(middle - 4),
            )
        )
    return _figure(parts, height, title)


def lines(
    values: Sequence[Line],
    x: Axis,
    y: Axis,
    title: str,
    x_title: str,
    tip: Callable[[Line, float, float], str],
    *,
    dots: bool = False,
) -> Markup:
    """Draw lines, with a place to point at for each of their points."""
    height = 280
    bottom, right = height - _BOTTOM, WIDTH - _RIGHT
    parts = [_across(x, _LEFT, right, bottom, _TOP), _up(y, bottom, right)]
    parts.append(
        Markup('<text class="title" x="{}" y="{}">{}</text>').format(
            (_LEFT + right) / 2, height - 4, x_title
        )
    )
    drawn: Counter[int] = Counter()
    for line in values:
        dash = _DASHES[drawn[line.series] % len(_DASHES)]  # the same target, under something else
        drawn[line.series] += 1
        places = [
            (x.place(one, _LEFT, right), y.place(two, bottom, _TOP)) for one, two in line.points
        ]
        path = "M" + "L".join(f"{_n(one)} {_n(two)}" for one, two in places)
        marks = Markup("").join(
            Markup(
                '<circle class="{kind}" cx="{x}" cy="{y}" r="{r}" tabindex="-1" data-tip="{tip}" '
                'fill="var(--s{colour})"/>'
            ).format(
                kind="dot" if dots else "hit",
                x=_n(place[0]),
                y=_n(place[1]),
                r=3.5 if dots else 7,
                tip=tip(line, *point),
                colour=line.series % COLOURS,
            )
            for place, point in zip(places, line.points, strict=True)
        )
        parts.append(
            Markup(
                '<g class="series" data-series="{series}"><path class="line" '
                'stroke="var(--s{colour})" stroke-dasharray="{dash}" d="{path}"/>{marks}</g>'
            ).format(
                series=line.series,
                colour=line.series % COLOURS,
                dash=dash,
                path=path,
                marks=marks,
            )
        )
    return _figure(parts, height, title)


def _across(axis: Axis, left: float, right: float, bottom: float, top: float) -> Markup:
    parts = [
        Markup(
            '<path class="grid" d="M{x} {top}V{bottom}"/>'
            '<text class="tick{last}" x="{x}" y="{y}">{text}</text>'
        ).format(
            last=" last" if tick == axis.ticks[-1] else "",
            x=_n(axis.place(tick, left, right)),
            top=top,
            bottom=_n(bottom),
            y=_n(bottom + 15),
            text=axis.form(tick),
        )
        for tick in axis.ticks
    ]
    return Markup("").join(parts)


def _up(axis: Axis, bottom: float, right: float) -> Markup:
    parts = [
        Markup(
            '<path class="grid" d="M{left} {y}H{right}"/>'
            '<text class="side" x="{x}" y="{text}">{tick}</text>'
        ).format(
            left=_LEFT,
            right=right,
            y=_n(axis.place(tick, bottom, _TOP)),
            x=_LEFT - 5,
            text=_n(axis.place(tick, bottom, _TOP) + 4),
            tick=axis.form(tick),
        )
        for tick in axis.ticks
    ]
    return Markup("").join(parts)


def _figure(parts: Sequence[Markup], height: float, title: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, _n(height), title, Markup("").join(parts)
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _shortened(label: str) -> str:
    longest = 18
    return label if len(label) <= longest else f"{label[: longest - 1]}…"
