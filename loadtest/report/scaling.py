"""The charts of a sweep: a figure as one option grows."""

from loadtest.report import axes, captions, line_chart
from loadtest.report.axes import rate_tick, time_tick
from loadtest.report.cells import NONE
from loadtest.report.chart import Chart, interval_ends, number_targets, served_note, served_share
from loadtest.report.marks import Line, Point
from loadtest.results.schema import Row


def _swept_name(rows: list[Row]) -> str:
    """Return the option of which rows have different numbers; empty where there is none."""
    names = {name for row in rows for name in row["sweep"]}
    if len(names) != 1 or not all(
        str(row["sweep"].get(name, "")).isdigit() for row in rows for name in names
    ):
        return ""
    return names.pop()


def _scaling_lines(rows: list[Row], name: str, *, throughput: bool) -> list[Line]:
    lines: dict[str, list[Point]] = {}
    for row in rows:
        spread = row["throughput"] if throughput else row["server"]["cpu"]
        if spread["median"]:
            lines.setdefault(row["target"], []).append(
                Point(
                    float(row["sweep"][name]),
                    spread["median"],
                    *interval_ends(spread),
                    # The client's limit does not bound the server's CPU per message.
                    bound=throughput and row["client_limited"],
                    partial=served_share(row),
                )
            )
    numbers = {row["target"]: number for number, row in number_targets(rows)}
    return [
        Line(target, sorted(points, key=lambda one: one.x), numbers[target])
        for target, points in lines.items()
    ]


def scaling(rows: list[Row], figure: str) -> Chart | None:
    """Return the chart of a figure, "throughput" or "cpu", over a sweep; None: there is none."""
    name, throughput = _swept_name(rows), figure == "throughput"
    chart_lines = _scaling_lines(rows, name, throughput=throughput) if name else []
    if not chart_lines:
        return None
    unit = "messages/s" if throughput else "µs/message"
    points = [point for line in chart_lines for point in line.points]
    title = "Throughput" if throughput else "Server CPU per message"
    return Chart(
        f"{title} over {name}",
        line_chart.lines(
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
                + served_note(point.partial)
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
