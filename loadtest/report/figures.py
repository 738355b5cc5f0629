"""The charts of the page, made from the figures of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram
from markupsafe import Markup

from loadtest.report import axes, captions, charts
from loadtest.report.axes import percent_tick, rate_tick, time_tick
from loadtest.report.cells import NONE, milliseconds, rate
from loadtest.report.marks import Bar, Line, Point
from loadtest.results.document import label
from loadtest.results.schema import Row, Spread

_NINES = (10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.9, 99.95, 99.99, 99.999)


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, with a caption, and its figures as a table."""

    title: str
    drawing: Markup
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def number_targets(rows: list[Row]) -> list[tuple[int, Row]]:
    """Return rows with the number of their target, which has the same colour in all charts."""
    names = list(dict.fromkeys(row["target"] for row in rows))
    return [(names.index(row["target"]), row) for row in rows]


def _short(row: Row) -> str:
    return " ".join([row["target"], *(str(value) for value in row["sweep"].values())])


def _served_share(row: Row) -> str:
    """Return how many of the clients were served; empty: all of them."""
    return f"{row['connections_served']} of {row['connections']}" if row["starved"] else ""


def _served_note(partial: str) -> str:
    return f"; {partial} clients served" if partial else ""


def _interval(spread: Spread) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % interval; a single round has none."""
    several = len(spread["rounds"]) > 1
    return (spread["low"], spread["high"]) if several else (None, None)


def _median_interval(spread: Spread) -> tuple[float, float, float] | None:
    """Return a median and the ends of its interval; None if there is nothing to draw."""
    median, low, high = spread["median"], spread["low"], spread["high"]
    return None if not median or low is None or high is None else (median, low, high)


def _throughput(rows: list[Row]) -> Chart | None:
    bars = [
        Bar(
            _short(row),
            *speed,
            f"{label(row)}: {'at least ' if row['client_limited'] else ''}{speed[0]:,.0f} "
            f"messages/s, 95 % interval {speed[1]:,.0f} to {speed[2]:,.0f}"
            f"{_served_note(_served_share(row))}",
            number,
            bound=f"≥ {rate(speed[0])}" if row["client_limited"] else "",
            partial=_served_share(row),
        )
        for number, row in number_targets(rows)
        if (speed := _median_interval(row["throughput"]))
    ]
    if not bars:
        return None
    return Chart(
        "Throughput",
        charts.bars(bars, rate_tick, "Throughput of each target, messages per second"),
        captions.THROUGHPUT,
        ("target", "messages/s", "95 % from", "to", "limited by", "served"),
        [
            (
                bar.label,
                f"{bar.value:,.0f}",
                f"{bar.low:,.0f}",
                f"{bar.high:,.0f}",
                "the client" if bar.bound else "the server",
                bar.partial or "all",
            )
            for bar in bars
        ],
    )


def _cpu(rows: list[Row]) -> Chart | None:
    bars = [
        Bar(
            _short(row),
            *cpu,
            f"{label(row)}: {cpu[0]:.2f} µs for each message, 95 % interval "
            f"{cpu[1]:.2f} to {cpu[2]:.2f}{_served_note(_served_share(row))}",
            number,
            partial=_served_share(row),
        )
        for number, row in number_targets(rows)
        if (cpu := _median_interval(row["server"]["cpu"]))
    ]
    if not bars:
        return None
    return Chart(
        "Server CPU per message",
        charts.bars(bars, time_tick, "Server CPU per message, microseconds"),
        captions.CPU,
        ("target", "µs/message", "95 % from", "to", "served"),
        [
            (
                bar.label,
                *(f"{value:.2f}" for value in (bar.value, bar.low, bar.high)),
                bar.partial or "all",
            )
            for bar in bars
        ],
    )


def _latency(rows: list[Row]) -> Chart | None:
    lines = []
    table = []
    for number, row in number_targets(rows):
        histogram = HdrHistogram.decode(row["latency_histogram"])
        total = histogram.get_total_count()
        if not total:
            continue
        # Beyond these percentiles, there is less than one message.
        shares = [share for share in _NINES if total * (1 - share / 100) >= 1]
        points = [
            Point(
                100 / (100 - share),
                max(1.0, histogram.get_value_at_percentile(share)),
                partial=_served_share(row),
            )
            for share in shares
        ]
        lines.append(Line(label(row), points, number, _short(row)))
        figures = row["latency_us"]
        table.append(
            (
                label(row),
                *(milliseconds(figures[key]) for key in ("p50", "p90", "p99", "p999", "max")),
                _served_share(row) or "all",
            )
        )
    if not lines:
        return None
    everything = [point.y for line in lines for point in line.points]
    nines = axes.logarithmic([point.x for line in lines for point in line.points], percent_tick)
    return Chart(
        "Latency",
        charts.lines(
            lines,
            nines,
            axes.logarithmic(everything, time_tick),
            "Latency by percentile",
            "per cent of the messages that were answered within …",
            lambda line, point: (
                f"{line.label}: {percent_tick(point.x)} % within {point.y / 1000:.3g} ms"
                f"{_served_note(point.partial)}"
            ),
        ),
        captions.LATENCY,
        ("target", "p50 ms", "p90", "p99", "p99.9", "max", "served"),
        table,
    )


def _over_time(rows: list[Row]) -> Chart | None:
    lines = [
        Line(
            label(row),
            [
                Point(
                    one["second"] + 1, one["messages"] / one["seconds"], partial=_served_share(row)
                )
                for one in row["series"]
                if one["seconds"] > 0.5  # noqa: PLR2004 - a rate over less time means nothing
            ],
            number,
            _short(row),
        )
        for number, row in number_targets(rows)
    ]
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return None
    last = max(point.x for line in lines for point in line.points)
    highest = max(point.y for line in lines for point in line.points)
    return Chart(
        "Over time",
        charts.lines(
            lines,
            axes.linear(last, lambda value: f"{value:g}"),
            axes.linear(highest, rate_tick),
            "Messages per second over time",
            "seconds",
            lambda line, point: (
                f"{line.label}, second {point.x:g}: {point.y:,.0f} messages/s"
                f"{_served_note(point.partial)}"
            ),
        ),
        captions.OVER_TIME,
        ("target", "second", "messages", "p50 ms", "p99 ms", "max ms", "errors so far"),
        [
            (
                label(row),
                str(one["second"] + 1),
                f"{one['messages']:,}",
                *(milliseconds(one[key]) for key in ("p50_us", "p99_us", "max_us")),
                str(one["errors"]),
            )
            for row in rows
            for one in row["series"]
        ],
    )


def _scaling(rows: list[Row], figure: str) -> Chart | None:
    names = {name for row in rows for name in row["sweep"]}
    if len(names) != 1 or not all(
        str(row["sweep"].get(name, "")).isdigit() for row in rows for name in names
    ):
        return None
    name = names.pop()
    throughput = figure == "throughput"
    lines: dict[str, list[Point]] = {}
    for row in rows:
        spread = row["throughput"] if throughput else row["server"]["cpu"]
        if spread["median"]:
            lines.setdefault(row["target"], []).append(
                Point(
                    float(row["sweep"][name]),
                    spread["median"],
                    *_interval(spread),
                    # The client's limit does not bound the server's CPU per message.
                    bound=throughput and row["client_limited"],
                    partial=_served_share(row),
                )
            )
    numbers = {row["target"]: number for number, row in number_targets(rows)}
    chart_lines = [
        Line(target, sorted(points, key=lambda one: one.x), numbers[target])
        for target, points in lines.items()
    ]
    if not chart_lines:
        return None
    unit = "messages/s" if throughput else "µs/message"
    points = [point for line in chart_lines for point in line.points]
    title = "Throughput" if throughput else "Server CPU per message"
    return Chart(
        f"{title} over {name}",
        charts.lines(
            chart_lines,
            axes.steps([point.x for point in points], lambda value: f"{value:g}"),
            axes.linear(
                max(point.high or point.y for point in points),
                rate_tick if throughput else time_tick,
            ),
            f"{title} over {name}",
            name,
            lambda line, point: (
                f"{line.label}, {name} {point.x:g}: {_value_text(point)} {unit}"
                + (
                    ""
                    if point.low is None
                    else f", 95 % interval {' to '.join(_interval_texts(point))}"
                )
                + _served_note(point.partial)
            ),
            dots=True,
        ),
        captions.SCALING,
        ("target", name, unit, "95 % from", "to", "served"),
        [
            (
                line.label,
                f"{point.x:g}",
                _value_text(point),
                *_interval_texts(point),
                point.partial or "all",
            )
            for line in chart_lines
            for point in line.points
        ],
    )


def _value_text(point: Point) -> str:
    return f"{'≥ ' if point.bound else ''}{point.y:,.5g}"


def _interval_texts(point: Point) -> list[str]:
    return [NONE if end is None else f"{end:,.5g}" for end in (point.low, point.high)]


CHARTS = (
    lambda rows: _scaling(rows, "throughput"),
    lambda rows: _scaling(rows, "cpu"),
    _throughput,
    _cpu,
    _latency,
    _over_time,
)
