"""Lines as SVG, with labels at their ends; see `loadtest.report.charts`."""

from collections import Counter
from collections.abc import Callable, Sequence

from markupsafe import Markup

from loadtest.report.axes import WIDTH, Axis, draw_x_axis, draw_y_axis, svg_number, text_width
from loadtest.report.charts import BOTTOM, COLOURS, TOP, figure, shorten
from loadtest.report.marks import Line, Point

_ROOM_FOR_ARROWS = 12

_LINE_HEIGHT = 14  # from one line of text to the next

_LONGEST_END_LABEL = 14  # characters

_DODGE = 3  # between points at the same place on the x axis

_MIN_OPACITY = 0.45


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
    """Draw lines, with labels at their ends, and a target for the pointer at each point.

    Long, because every place in the drawing follows from the room that the labels leave.
    """
    texts = [_end_label(line) for line in values]
    rows = sum(map(len, texts))
    bounds = any(point.bound for line in values for point in line.points)
    top = TOP + _ROOM_FOR_ARROWS * bounds
    height = max(280, top + _LINE_HEIGHT * rows + BOTTOM)
    bottom = height - BOTTOM
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
    counts: Counter[int] = Counter()
    totals = Counter(line.series for line in values)
    for line, line_places, text, end in zip(values, places, texts, ends, strict=True):
        # Further lines of the same target are paler.
        share = counts[line.series] / max(1, totals[line.series] - 1)
        counts[line.series] += 1
        marks = [
            _dot(point, place, tip(line, point), y, bottom, top)
            if dots
            else _pointer_target(place, tip(line, point))
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
    notes = _notes(values, places) if dots else []  # drawn over everything
    return figure([*parts, *notes], height, title)


def _pointer_target(place: tuple[float, float], tip: str) -> Markup:
    return Markup('<circle class="hit" cx="{}" cy="{}" r="7" tabindex="-1" data-tip="{}"/>').format(
        svg_number(place[0]), svg_number(place[1]), tip
    )


def _notes(values: Sequence[Line], places: Sequence[Sequence[tuple[float, float]]]) -> list[Markup]:
    """Return how many clients were served, at points where that is not all of them.

    That of a last point is in the label at the end.
    """
    return [
        Markup('<text class="note" data-series="{}" x="{}" y="{}">{}</text>').format(
            line.series, svg_number(place[0] + 7), svg_number(place[1] + 15), point.partial
        )
        for line, line_places in zip(values, places, strict=True)
        for point, place in zip(line.points[:-1], line_places, strict=False)
        if point.partial
    ]


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
    label = shorten(line.short or line.label, _LONGEST_END_LABEL)
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
