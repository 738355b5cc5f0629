"""Charts as SVG: bars with intervals, and lines; nothing but strings, and no script.

The drawing is small, and grows with the page: on a phone it is about as wide as its viewBox, so
that text stays readable. Colours are names of CSS variables, which the page sets for light and
dark. What must not be missed does not hang on colour: where some clients were never served, bars
are hatched (by the page's pattern ``hatch``) and lines dashed, and both say how many were.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from markupsafe import Markup

from loadtest.report.axes import WIDTH, Axis, draw_across, draw_up, linear, rounded, text_width
from loadtest.report.marks import Bar, Line, Point

_RIGHT, _TOP, _BOTTOM = 14, 12, 40

_ROOM_FOR_ARROWS = 12

_BAR, _GAP = 18, 10

_ROW = 14  # from one line of text to the next

_LONGEST_LABEL, _LONGEST_END_LABEL = 18, 14  # characters

_DODGE = 3  # between points that stand at the same place of the x axis

_PALEST = 0.45

COLOURS = 8


def bars(values: Sequence[Bar], form: Callable[[float], str], title: str) -> Markup:
    """Draw horizontal bars with 95 % intervals."""
    axis = linear(max((bar.high for bar in values), default=1.0), form)
    height = _TOP + len(values) * (_BAR + _GAP) + _BOTTOM - 14
    names = [_shortened(bar.label, _LONGEST_LABEL) for bar in values]
    left, right = 12 + max(map(text_width, names), default=0), WIDTH - _RIGHT - 8
    parts = [draw_across(axis, left, right, height - _BOTTOM + 14, _TOP)]
    for position, (bar, name) in enumerate(zip(values, names, strict=True)):
        y = _TOP + position * (_BAR + _GAP) + _GAP / 2
        end, low, high = (axis.place(x, left, right) for x in (bar.value, bar.low, bar.high))
        middle = y + _BAR / 2
        place = {"x": rounded(left), "y": rounded(y), "long": rounded(end - left), "thick": _BAR}
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
                name=rounded(left - 6),
                text=rounded(middle + 4),
                label=name,
                hit=rounded(y - _GAP / 2),
                width=WIDTH,
                tall=_BAR + _GAP,
                kinds=" bound" if bar.bound else "",
                colour=bar.series % COLOURS,
                low=rounded(low),
                high=rounded(high),
                middle=rounded(middle),
                up=rounded(middle - 4),
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
    inside = low - left > text_width(text) + 8 or high + 8 + text_width(text) > WIDTH
    return Markup('<text class="note" x="{}" y="{}">{}</text>').format(
        rounded(left + 5 if inside else high + 7), rounded(middle + 4), text
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
    left = 10 + max(text_width(y.form(tick)) for tick in y.ticks)
    gutter = WIDTH - max(text_width(text) for one in texts for text in one) - 4
    right = gutter - 14
    # Points at the same place of the x axis stand side by side, and none on the y axis.
    shift = _DODGE if dots else 0
    inset = shift * (len(values) + 1)
    parts = [
        draw_across(x, left + inset, right - inset, bottom, top),
        draw_up(y, left, right, bottom, top),
        Markup('<text class="title" x="{}" y="{}">{}</text>').format(
            rounded((left + right) / 2), height - 4, x_title
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
            ).format(rounded(place[0]), rounded(place[1]), tip(line, point))
            for point, place in zip(line.points, where, strict=True)
        ]
        parts.append(
            Markup(
                '<g class="series" data-series="{series}" style="color:var(--s{colour})">'
                '<g stroke-opacity="{opacity}">{paths}</g>{marks}{label}</g>'
            ).format(
                series=line.series,
                colour=line.series % COLOURS,
                opacity=rounded(1 - share * (1 - _PALEST), 2),
                paths=_paths(line, where),
                marks=Markup("").join(marks),
                label=_at_end(text, where[-1], gutter, end),
            )
        )
        if dots:  # over everything, and the last one at the end
            notes += [
                Markup('<text class="note" data-series="{}" x="{}" y="{}">{}</text>').format(
                    line.series, rounded(place[0] + 7), rounded(place[1] + 15), point.partial
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
        begin = "M" + " ".join(map(rounded, where[number - 1]))
        last = " ".join(map(rounded, where[number]))
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
            ).format(x=rounded(across), low=rounded(low), high=rounded(high), a=rounded(across - 3))
        )
    if point.bound:
        parts.append(
            Markup('<path class="arrow" d="M{x} {y}v-9m-3.5 4l3.5 -4l3.5 4"/>').format(
                x=rounded(across), y=rounded(min(high, up - 4))
            )
        )
    kind = "dot bound" if point.bound else "dot"
    parts.append(
        Markup('<circle class="{}" cx="{}" cy="{}" r="3.5" tabindex="-1" data-tip="{}"/>').format(
            kind, rounded(across), rounded(up), tip
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
        *(
            rounded(end[0] + 5),
            rounded(end[1]),
            rounded(gutter - 3),
            rounded(middle),
            rounded(begin + _ROW - 4),
        ),
        Markup("").join(
            Markup('<tspan x="{}" dy="{}">{}</tspan>').format(
                rounded(gutter), _ROW if row else 0, one
            )
            for row, one in enumerate(text)
        ),
    )


def _figure(parts: Sequence[Markup], height: float, title: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, rounded(height), title, Markup("").join(parts)
    )


def _shortened(label: str, longest: int) -> str:
    """Return a label without its middle where it is too long: what tells two apart is at an end."""
    if len(label) <= longest:
        return label
    tail = longest // 2
    return f"{label[: longest - tail - 1]}…{label[-tail:]}"
