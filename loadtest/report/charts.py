"""Charts as SVG: bars with intervals, and lines; nothing but strings, and no script.

The drawing is small, and grows with the page: on a phone it is about as wide as its viewBox, so
that text stays readable. Colours are names of CSS variables, which the page sets for light and
dark. What must not be missed does not hang on colour: where some clients were never served, bars
are hatched (by the page's pattern ``hatch``) and lines dashed, and both say how many were.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 440
_RIGHT, _TOP, _BOTTOM = 14, 12, 40
_ROOM_FOR_ARROWS = 12
_BAR, _GAP = 18, 10
_ROW = 14  # from one line of text to the next
_CHARACTER = 7.6  # about the width of one, in a wide font
_LONGEST_LABEL, _LONGEST_END_LABEL = 18, 14  # characters
_DODGE = 3  # between points that stand at the same place of the x axis
_PALEST = 0.45
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


def bars(values: Sequence[Bar], form: Callable[[float], str], title: str) -> Markup:
    """Draw horizontal bars with 95 % intervals."""
    axis = linear(max((bar.high for bar in values), default=1.0), form)
    height = _TOP + len(values) * (_BAR + _GAP) + _BOTTOM - 14
    names = [_shortened(bar.label, _LONGEST_LABEL) for bar in values]
    left, right = 12 + max(map(_width, names), default=0), WIDTH - _RIGHT - 8
    parts = [_across(axis, left, right, height - _BOTTOM + 14, _TOP)]
    for number, (bar, name) in enumerate(zip(values, names, strict=True)):
        y = _TOP + number * (_BAR + _GAP) + _GAP / 2
        end, low, high = (axis.place(x, left, right) for x in (bar.value, bar.low, bar.high))
        middle = y + _BAR / 2
        place = {"x": _n(left), "y": _n(y), "long": _n(end - left), "thick": _BAR}
        parts.append(
            Markup(
                '<g class="mark" data-series="{series}" tabindex="0" data-tip="{tip}">'
                '<text class="name" x="{name}" y="{text}">{label}</text>'
                '<rect class="hit" x="0" y="{hit}" width="{width}" height="{tall}"/>'
                '<rect class="bar{kinds}" fill="var(--s{colour})" x="{x}" y="{y}" '
                'width="{long}" height="{thick}" rx="2"/>{hatch}'
                '<path class="whisker" d="M{low} {middle}H{high}M{low} {up}v8M{high} {up}v8"/>'
                "{note}</g>"
            ).format(
                series=bar.series,
                tip=bar.tip,
                name=_n(left - 6),
                text=_n(middle + 4),
                label=name,
                hit=_n(y - _GAP / 2),
                width=WIDTH,
                tall=_BAR + _GAP,
                kinds=" bound" if bar.bound else "",
                colour=bar.series % COLOURS,
                low=_n(low),
                high=_n(high),
                middle=_n(middle),
                up=_n(middle - 4),
                hatch=_hatch(bar, **place) if bar.partial else "",
                note=_note(bar.note, left, low, high, middle) if bar.note else "",
                **place,
            )
        )
    return _figure(parts, height, title)


def _hatch(bar: Bar, **place: object) -> Markup:
    return Markup(
        '<rect class="hatch" fill="url(#hatch)" stroke="var(--s{colour})" x="{x}" y="{y}" '
        'width="{long}" height="{thick}" rx="2"/>'
    ).format(colour=bar.series % COLOURS, **place)


def _note(text: str, left: float, low: float, high: float, middle: float) -> Markup:
    """Write on a bar where it is long enough, and else behind it."""
    inside = low - left > _width(text) + 8 or high + 8 + _width(text) > WIDTH
    return Markup('<text class="note" x="{}" y="{}">{}</text>').format(
        _n(left + 5 if inside else high + 7), _n(middle + 4), text
    )


def lines(
    values: Sequence[Line],
    x: Axis,
    y: Axis,
    title: str,
    x_title: str,
    tip: Callable[[Line, Point], str],
    *,
    dots: bool = False,
) -> Markup:
    """Draw lines, with a place to point at for each of their points, and labels at their ends."""
    texts = [_end_label(line) for line in values]
    rows = sum(map(len, texts))
    bounds = any(point.bound for line in values for point in line.points)
    top = _TOP + _ROOM_FOR_ARROWS * bounds
    height = max(280, top + _ROW * rows + _BOTTOM)
    bottom = height - _BOTTOM
    left = 10 + max(_width(y.form(tick)) for tick in y.ticks)
    gutter = WIDTH - max(_width(text) for one in texts for text in one) - 4
    right = gutter - 14
    # Points at the same place of the x axis stand side by side, and none on the y axis.
    shift = _DODGE if dots else 0
    inset = shift * (len(values) + 1)
    parts = [
        _across(x, left + inset, right - inset, bottom, top),
        _up(y, left, right, bottom, top),
        Markup('<text class="title" x="{}" y="{}">{}</text>').format(
            _n((left + right) / 2), height - 4, x_title
        ),
    ]
    places = [
        [
            (
                x.place(one.x, left + inset, right - inset)
                + shift * (number - (len(values) - 1) / 2),
                y.place(one.y, bottom, top),
            )
            for one in line.points
        ]
        for number, line in enumerate(values)
    ]
    ends = _apart([where[-1][1] for where in places], [len(text) for text in texts], top, bottom)
    notes = []
    drawn: Counter[int] = Counter()
    same = Counter(line.series for line in values)
    for line, where, text, end in zip(values, places, texts, ends, strict=True):
        # The same target, under something else, is paler.
        share = drawn[line.series] / max(1, same[line.series] - 1)
        drawn[line.series] += 1
        marks = [
            _dot(point, place, tip(line, point), y, bottom, top)
            if dots
            else Markup(
                '<circle class="hit" cx="{}" cy="{}" r="7" tabindex="-1" data-tip="{}"/>'
            ).format(_n(place[0]), _n(place[1]), tip(line, point))
            for point, place in zip(line.points, where, strict=True)
        ]
        parts.append(
            Markup(
                '<g class="series" data-series="{series}" style="color:var(--s{colour})">'
                '<g stroke-opacity="{opacity}">{paths}</g>{marks}{label}</g>'
            ).format(
                series=line.series,
                colour=line.series % COLOURS,
                opacity=_n(1 - share * (1 - _PALEST), 2),
                paths=_paths(line, where),
                marks=Markup("").join(marks),
                label=_at_end(text, where[-1], gutter, end),
            )
        )
        if dots:  # over everything, and the last one at the end
            notes += [
                Markup('<text class="note" data-series="{}" x="{}" y="{}">{}</text>').format(
                    line.series, _n(place[0] + 7), _n(place[1] + 15), point.partial
                )
                for point, place in zip(line.points[:-1], where, strict=False)
                if point.partial
            ]
    return _figure([*parts, *notes], height, title)


def _paths(line: Line, where: Sequence[tuple[float, float]]) -> Markup:
    """Draw what joins the points: whole where all clients were served at both ends."""
    paths = {"line": "", "line partial": ""}
    for number in range(1, len(where)):
        ends = line.points[number - 1 : number + 1]
        kind = "line partial" if any(point.partial for point in ends) else "line"
        before = paths[kind]
        begin = "M" + " ".join(map(_n, where[number - 1]))
        last = " ".join(map(_n, where[number]))
        goes_on = before.endswith(begin[1:])
        paths[kind] = f"{before}{'' if goes_on else begin}L{last}"
    return Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(kind, path)
        for kind, path in paths.items()
        if path
    )


def _dot(
    point: Point,
    place: tuple[float, float],
    tip: str,
    y: Axis,
    bottom: float,
    top: float,
) -> Markup:
    """Draw a point with its interval: open, with an arrow up, where it is a lower bound."""
    across, up = place
    low, high = (
        up if end is None else y.place(end, bottom, top) for end in (point.low, point.high)
    )
    parts = []
    if point.low is not None:
        parts.append(
            Markup(
                '<path class="interval" d="M{x} {low}V{high}M{a} {low}h6M{a} {high}h6"/>'
            ).format(x=_n(across), low=_n(low), high=_n(high), a=_n(across - 3))
        )
    if point.bound:
        parts.append(
            Markup('<path class="arrow" d="M{x} {y}v-9m-3.5 4l3.5 -4l3.5 4"/>').format(
                x=_n(across), y=_n(min(high, up - 4))
            )
        )
    kind = "dot bound" if point.bound else "dot"
    parts.append(
        Markup('<circle class="{}" cx="{}" cy="{}" r="3.5" tabindex="-1" data-tip="{}"/>').format(
            kind, _n(across), _n(up), tip
        )
    )
    return Markup("").join(parts)


def _end_label(line: Line) -> list[str]:
    """Return the lines of text at a line's end."""
    label = _shortened(line.short or line.label, _LONGEST_END_LABEL)
    return [label, *filter(None, [line.points[-1].partial])]


def _apart(wanted: Sequence[float], rows: Sequence[int], top: float, bottom: float) -> list[float]:
    """Return where texts of so many rows begin, near where they are wanted, and none over another.

    Args:
        wanted: Where the middle of each should be.
        rows: How many rows each has.
        top: Where the first may begin.
        bottom: Where the last must end.
    """
    order = sorted(range(len(wanted)), key=lambda one: wanted[one])
    found = [0.0] * len(wanted)
    free = top - _ROW / 2
    for one in order:
        found[one] = free = max(free, wanted[one] - rows[one] * _ROW / 2)
        free += rows[one] * _ROW
    limit = bottom + _ROW / 2
    for one in reversed(order):
        found[one] = min(found[one], limit - rows[one] * _ROW)
        limit = found[one]
    return found


def _at_end(text: Sequence[str], end: tuple[float, float], gutter: float, begin: float) -> Markup:
    """Write a line's label beside its end, and lead from the one to the other."""
    middle = begin + len(text) * _ROW / 2
    return Markup(
        '<path class="leader" d="M{} {}L{} {}"/><text class="end" y="{}">{}</text>'
    ).format(
        *(_n(end[0] + 5), _n(end[1]), _n(gutter - 3), _n(middle), _n(begin + _ROW - 4)),
        Markup("").join(
            Markup('<tspan x="{}" dy="{}">{}</tspan>').format(_n(gutter), _ROW if row else 0, one)
            for row, one in enumerate(text)
        ),
    )


def _across(axis: Axis, left: float, right: float, bottom: float, top: float) -> Markup:
    places = [axis.place(tick, left, right) for tick in axis.ticks]
    parts = [
        Markup('<path class="grid" d="M{} {}V{}"/>').format(_n(x), top, _n(bottom)) for x in places
    ]
    parts += [
        Markup('<text class="tick" x="{}" y="{}">{}</text>').format(_n(x), _n(bottom + 16), text)
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
        half = _width(text) / 2
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
    return one[0] + _width(one[1]) / 2 + _CHARACTER / 2 <= other[0] - _width(other[1]) / 2


def _up(axis: Axis, left: float, right: float, bottom: float, top: float) -> Markup:
    parts = [
        Markup(
            '<path class="grid" d="M{left} {y}H{right}"/>'
            '<text class="side" x="{x}" y="{text}">{tick}</text>'
        ).format(
            left=_n(left),
            right=_n(right),
            y=_n(axis.place(tick, bottom, top)),
            x=_n(left - 5),
            text=_n(axis.place(tick, bottom, top) + 4),
            tick=axis.form(tick),
        )
        for tick in axis.ticks
    ]
    return Markup("").join(parts)


def _figure(parts: Sequence[Markup], height: float, title: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, _n(height), title, Markup("").join(parts)
    )


def _n(value: float, digits: int = 1) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".")


def _width(text: str) -> float:
    return len(text) * _CHARACTER


def _shortened(label: str, longest: int) -> str:
    """Return a label without its middle where it is too long: what tells two apart is at an end."""
    if len(label) <= longest:
        return label
    tail = longest // 2
    return f"{label[: longest - tail - 1]}…{label[-tail:]}"
