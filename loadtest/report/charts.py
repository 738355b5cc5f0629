"""Charts as SVG: bars with intervals; nothing but strings, and no script.

The drawing is small, and grows with the page: on a phone it is about as wide as its viewBox, so
that text stays readable. Colours are names of CSS variables, which the page sets for light and
dark. What must not be missed does not depend on colour: where some clients were never served, bars
are hatched (by the page's pattern ``hatch``) and lines dashed, and both say how many were.
"""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from loadtest.report.axes import (
    WIDTH,
    draw_x_axis,
    linear,
    svg_number,
    text_width,
)
from loadtest.report.marks import Bar

_RIGHT = 14
TOP, BOTTOM = 12, 40

_BAR_HEIGHT, _GAP = 18, 10

_LONGEST_LABEL = 18  # characters

COLOURS = 8


def bars(values: Sequence[Bar], form: Callable[[float], str], title: str) -> Markup:
    """Draw horizontal bars with 95 % intervals."""
    axis = linear(max((bar.high for bar in values), default=1.0), form)
    height = TOP + len(values) * (_BAR_HEIGHT + _GAP) + BOTTOM - 14
    names = [shorten(bar.label, _LONGEST_LABEL) for bar in values]
    left, right = 12 + max(map(text_width, names), default=0), WIDTH - _RIGHT - 8
    parts = [draw_x_axis(axis, left, right, height - BOTTOM + 14, TOP)]
    for position, (bar, name) in enumerate(zip(values, names, strict=True)):
        y = TOP + position * (_BAR_HEIGHT + _GAP) + _GAP / 2
        end, low, high = (axis.place(x, left, right) for x in (bar.value, bar.low, bar.high))
        middle = y + _BAR_HEIGHT / 2
        place = {
            "x": svg_number(left),
            "y": svg_number(y),
            "long": svg_number(end - left),
            "thick": _BAR_HEIGHT,
        }
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
                name=svg_number(left - 6),
                text=svg_number(middle + 4),
                label=name,
                hit=svg_number(y - _GAP / 2),
                width=WIDTH,
                tall=_BAR_HEIGHT + _GAP,
                kinds=" bound" if bar.bound else "",
                colour=bar.series % COLOURS,
                low=svg_number(low),
                high=svg_number(high),
                middle=svg_number(middle),
                up=svg_number(middle - 4),
                hatch=_hatch(bar, **place) if bar.partial else "",
                note=_note(bar.note, left, low, high, middle) if bar.note else "",
                **place,
            )
        )
    return figure(parts, height, title)


def _hatch(bar: Bar, **place: object) -> Markup:
    return Markup(
        '<rect class="hatch" fill="url(#hatch)" stroke="var(--s{colour})" x="{x}" y="{y}" '
        'width="{long}" height="{thick}" rx="2"/>'
    ).format(colour=bar.series % COLOURS, **place)


def _note(text: str, left: float, low: float, high: float, middle: float) -> Markup:
    """Write a note on a bar if it is long enough, else behind it."""
    inside = low - left > text_width(text) + 8 or high + 8 + text_width(text) > WIDTH
    return Markup('<text class="note" x="{}" y="{}">{}</text>').format(
        svg_number(left + 5 if inside else high + 7), svg_number(middle + 4), text
    )


def figure(parts: Sequence[Markup], height: float, title: str) -> Markup:
    """Return the drawing of a chart."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, svg_number(height), title, Markup("").join(parts)
    )


def shorten(label: str, longest: int) -> str:
    """Return a label, shortened in the middle: labels differ at their ends."""
    if len(label) <= longest:
        return label
    tail = longest // 2
    return f"{label[: longest - tail - 1]}…{label[-tail:]}"
