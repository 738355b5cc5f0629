"""Charts as SVG: bars with intervals, and lines; nothing but strings, and no script.

The drawing is small, and grows with the page: on a phone it is about as wide as its viewBox, so
that text stays readable. Colours are names of CSS variables, which the page sets for light and
dark. What must not be missed does not depend on colour: where some clients were never served, bars
are hatched (by the page's pattern ``hatch``) and lines dashed, and both say how many were.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from markupsafe import Markup

from loadtest.report.axes import (
    WIDTH,
    Axis,
    draw_x_axis,
    draw_y_axis,
    linear,
    svg_number,
    text_width,
)
from loadtest.report.marks import Bar, Line, Point

_RIGHT, _TOP, _BOTTOM = 14, 12, 40

_ROOM_FOR_ARROWS = 12

_BAR_HEIGHT, _GAP = 18, 10

_LINE_HEIGHT = 14  # from one line of text to the next

_LONGEST_LABEL, _LONGEST_END_LABEL = 18, 14  # characters

_DODGE = 3  # between points at the same place on the x axis

_MIN_OPACITY = 0.45

COLOURS = 8


def bars(values: Sequence[Bar], form: Callable[[float], str], title: str) -> Markup:
    """Draw horizontal bars with 95 % intervals."""
    axis = linear(max((bar.high for bar in values), default=1.0), form)
    height = _TOP + len(values) * (_BAR_HEIGHT + _GAP) + _BOTTOM - 14
    names = [_shorten(bar.label, _LONGEST_LABEL) for bar in values]
    left, right = 12 + max(map(text_width, names), default=0), WIDTH - _RIGHT - 8
    parts = [draw_x_axis(axis, left, right, height - _BOTTOM + 14, _TOP)]
    for position, (bar, name) in enumerate(zip(values, names, strict=True)):
        y = _TOP + position * (_BAR_HEIGHT + _GAP) + _GAP / 2
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
    return _figure(parts, height, title)


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
    """Draw lines, with labels at their ends, and a target for the pointer at each point."""
    texts = [_end_label(line) for line in values]
    rows = sum(map(len, texts))
    bounds = any(point.bound for line in values for point in line.points)
    top = _TOP + _ROOM_FOR_ARROWS * bounds
    height = max(280, top + _LINE_HEIGHT * rows + _BOTTOM)
    bottom = height - _BOTTOM
    left = 10 + max(text_width(y.form(tick)) for tick in y.ticks)
    gutter = WIDTH - max(text_width(text) for one in texts for text in one) - 4
    right = gutter - 14
    # Points at the same place on the x axis are drawn side by side, and none on the y axis.
    shift = _DODGE if dots else 0
    inset = shift * (len(values) + 1)
    parts = [
        draw_x_axis(x, left + inset, right - inset, bottom, top),
        draw_y_axis(y, left, right, bottom, top),
        Markup('<text class="title" x="{}" y="{}">{}</text>').format(
            svg_number((left + right) / 2), height - 4, x_title
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
    ends = _spread_out(
        [line_places[-1][1] for line_places in places], [len(text) for text in texts], top, bottom
    )
    notes = []
    counts: Counter[int] = Counter()
    totals = Counter(line.series for line in values)
    for line, line_places, text, end in zip(values, places, texts, ends, strict=True):
        # Further lines of the same target are paler.
        share = counts[line.series] / max(1, totals[line.series] - 1)
        counts[line.series] += 1
        marks = [
            _dot(point, place, tip(line, point), y, bottom, top)
            if dots
            else Markup(
                '<circle class="hit" cx="{}" cy="{}" r="7" tabindex="-1" data-tip="{}"/>'
            ).format(svg_number(place[0]), svg_number(place[1]), tip(line, point))
            for point, place in zip(line.points, line_places, strict=True)
        ]
        parts.append(
            Markup(
                '<g class="series" data-series="{series}" style="color:var(--s{colour})">'
                '<g stroke-opacity="{opacity}">{paths}</g>{marks}{label}</g>'
            ).format(
                series=line.series,
                colour=line.series % COLOURS,
                opacity=svg_number(1 - share * (1 - _MIN_OPACITY), 2),
                paths=_paths(line, line_places),
                marks=Markup("").join(marks),
                label=_at_end(text, line_places[-1], gutter, end),
            )
        )
        if dots:  # drawn over everything; the note of the last point is in the end label
            notes += [
                Markup('<text class="note" data-series="{}" x="{}" y="{}">{}</text>').format(
                    line.series, svg_number(place[0] + 7), svg_number(place[1] + 15), point.partial
                )
                for point, place in zip(line.points[:-1], line_places, strict=False)
                if point.partial
            ]
    return _figure([*parts, *notes], height, title)


def _paths(line: Line, places: Sequence[tuple[float, float]]) -> Markup:
    """Draw the segments between points: solid if all clients were served at both ends."""
    paths = {"line": "", "line partial": ""}
    for number in range(1, len(places)):
        ends = line.points[number - 1 : number + 1]
        kind = "line partial" if any(point.partial for point in ends) else "line"
        before = paths[kind]
        begin = "M" + " ".join(map(svg_number, places[number - 1]))
        last = " ".join(map(svg_number, places[number]))
        is_continued = before.endswith(begin[1:])
        paths[kind] = f"{before}{'' if is_continued else begin}L{last}"
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
            ).format(
                x=svg_number(across),
                low=svg_number(low),
                high=svg_number(high),
                a=svg_number(across - 3),
            )
        )
    if point.bound:
        parts.append(
            Markup('<path class="arrow" d="M{x} {y}v-9m-3.5 4l3.5 -4l3.5 4"/>').format(
                x=svg_number(across), y=svg_number(min(high, up - 4))
            )
        )
    kind = "dot bound" if point.bound else "dot"
    parts.append(
        Markup('<circle class="{}" cx="{}" cy="{}" r="3.5" tabindex="-1" data-tip="{}"/>').format(
            kind, svg_number(across), svg_number(up), tip
        )
    )
    return Markup("").join(parts)


def _end_label(line: Line) -> list[str]:
    """Return the lines of text at a line's end."""
    label = _shorten(line.short or line.label, _LONGEST_END_LABEL)
    return [label, *filter(None, [line.points[-1].partial])]


def _spread_out(
    middles: Sequence[float], rows: Sequence[int], top: float, bottom: float
) -> list[float]:
    """Return where texts begin, near the middles that are wanted, so that none overlap.

    Args:
        middles: The wanted middle of each text.
        rows: The number of rows of each text.
        top: Where the first may begin.
        bottom: Where the last must end.
    """
    order = sorted(range(len(middles)), key=lambda one: middles[one])
    tops = [0.0] * len(middles)
    next_top = top - _LINE_HEIGHT / 2
    for one in order:
        tops[one] = next_top = max(next_top, middles[one] - rows[one] * _LINE_HEIGHT / 2)
        next_top += rows[one] * _LINE_HEIGHT
    limit = bottom + _LINE_HEIGHT / 2
    for one in reversed(order):
        tops[one] = min(tops[one], limit - rows[one] * _LINE_HEIGHT)
        limit = tops[one]
    return tops


def _at_end(text: Sequence[str], end: tuple[float, float], gutter: float, begin: float) -> Markup:
    """Write the label of a line beside its end, and draw a leader between them."""
    middle = begin + len(text) * _LINE_HEIGHT / 2
    return Markup(
        '<path class="leader" d="M{} {}L{} {}"/><text class="end" y="{}">{}</text>'
    ).format(
        *(
            svg_number(end[0] + 5),
            svg_number(end[1]),
            svg_number(gutter - 3),
            svg_number(middle),
            svg_number(begin + _LINE_HEIGHT - 4),
        ),
        Markup("").join(
            Markup('<tspan x="{}" dy="{}">{}</tspan>').format(
                svg_number(gutter), _LINE_HEIGHT if row else 0, one
            )
            for row, one in enumerate(text)
        ),
    )


def _figure(parts: Sequence[Markup], height: float, title: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, svg_number(height), title, Markup("").join(parts)
    )


def _shorten(label: str, longest: int) -> str:
    """Return a label, shortened in the middle: labels differ at their ends."""
    if len(label) <= longest:
        return label
    tail = longest // 2
    return f"{label[: longest - tail - 1]}…{label[-tail:]}"
