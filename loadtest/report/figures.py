"""The charts of the page, made from the figures of the rows."""

from hdrh.histogram import HdrHistogram

from loadtest.report import axes, captions, charts, line_chart
from loadtest.report.axes import percent_tick, rate_tick, time_tick
from loadtest.report.cells import milliseconds, rate
from loadtest.report.chart import Chart, number_targets, served_note, served_share, short_label
from loadtest.report.marks import Bar, Line, Point
from loadtest.report.scaling import scaling
from loadtest.results.document import label
from loadtest.results.schema import Row, Spread

_NINES = (10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.9, 99.95, 99.99, 99.999)


def _median_interval(spread: Spread) -> tuple[float, float, float] | None:
    """Return a median and the ends of its interval; None if there is nothing to draw."""
    median, low, high = spread["median"], spread["low"], spread["high"]
    return None if not median or low is None or high is None else (median, low, high)


def _throughput(rows: list[Row]) -> Chart | None:
    bars = [
        Bar(
            short_label(row),
            *speed,
            f"{label(row)}: {'at least ' if row['client_limited'] else ''}{speed[0]:,.0f} "
            f"messages/s, 95 % interval {speed[1]:,.0f} to {speed[2]:,.0f}"
            f"{served_note(served_share(row))}",
            number,
            bound=f"≥ {rate(speed[0])}" if row["client_limited"] else "",
            partial=served_share(row),
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
            short_label(row),
            *cpu,
            f"{label(row)}: {cpu[0]:.2f} µs for each message, 95 % interval "
            f"{cpu[1]:.2f} to {cpu[2]:.2f}{served_note(served_share(row))}",
            number,
            partial=served_share(row),
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
                partial=served_share(row),
            )
            for share in shares
        ]
        lines.append(Line(label(row), points, number, short_label(row)))
        figures = row["latency_us"]
        table.append(
            (
                label(row),
                *(milliseconds(figures[key]) for key in ("p50", "p90", "p99", "p999", "max")),
                served_share(row) or "all",
            )
        )
    if not lines:
        return None
    everything = [point.y for line in lines for point in line.points]
    nines = axes.logarithmic([point.x for line in lines for point in line.points], percent_tick)
    return Chart(
        "Latency",
        line_chart.lines(
            lines,
            nines,
            axes.logarithmic(everything, time_tick),
            "Latency by percentile",
            "per cent of the messages that were answered within …",
            lambda line, point: (
                f"{line.label}: {percent_tick(point.x)} % within {point.y / 1000:.3g} ms"
                f"{served_note(point.partial)}"
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
                    one["second"] + 1, one["messages"] / one["seconds"], partial=served_share(row)
                )
                for one in row["series"]
                if one["seconds"] > 0.5  # noqa: PLR2004 - a rate over less time means nothing
            ],
            number,
            short_label(row),
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
        line_chart.lines(
            lines,
            axes.linear(last, lambda value: f"{value:g}"),
            axes.linear(highest, rate_tick),
            "Messages per second over time",
            "seconds",
            lambda line, point: (
                f"{line.label}, second {point.x:g}: {point.y:,.0f} messages/s"
                f"{served_note(point.partial)}"
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


CHARTS = (
    lambda rows: scaling(rows, "throughput"),
    lambda rows: scaling(rows, "cpu"),
    _throughput,
    _cpu,
    _latency,
    _over_time,
)
