"""The objectives (SLO) that a measurement must meet, as they are typed."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echoserver.units import parse_duration, parse_quantity

if TYPE_CHECKING:  # so that `--help` imports no client
    from loadtest.results.schema import Row

_LATENCIES = ("p50", "p90", "p95", "p99", "p999", "max", "mean")
_COUNTS = ("errors", "dropped", "starved")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_OBJECTIVE = re.compile(r"(?P<figure>[\w.]+)\s*(?P<sign><=|>=|<|>|=)\s*(?P<limit>[\w.]+)", re.ASCII)
_FIGURES = (*_LATENCIES, *_COUNTS, "cpu", "throughput")


@dataclass(frozen=True, slots=True)
class Objective:
    """One condition, as ``p99<20ms``."""

    text: str
    figure: str
    sign: str
    limit: float
    """Seconds, messages a second, or a count."""

    def holds(self, row: "Row") -> bool:
        """Tell whether a result meets the objective; a result without the figure does not."""
        value = figure(row, self.figure)
        return value is not None and _SIGNS[self.sign](value, self.limit)

    @property
    def bound(self) -> str:
        """The condition without its figure, as ``< 20 ms``."""
        return f"{self.sign} {format_figure(self.figure, self.limit)}"

    @property
    def wants_throughput(self) -> bool:
        """It requires a rate, for which a limited client shows only a lower bound."""
        return self.figure == "throughput" and self.sign in {">", ">="}


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Return the objectives that `text` names, separated by commas.

    p50, p90, p95, p99, p999, max and mean are latencies, ``cpu`` is server CPU per message,
    ``errors``, ``dropped`` and ``starved`` are counts, ``throughput`` is in messages a second.

    Raises:
        ValueError: It is not a list of objectives; the message completes "X must be ...".
    """
    objectives = []
    for part in text.split(","):
        match = _OBJECTIVE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"conditions such as p99<20ms,errors=0,throughput>10k, not {part!r}")
        if match["figure"] not in _FIGURES:
            name = match["figure"].replace(".", "")
            guess = f"; did you mean {name}?" if name in _FIGURES else ""
            raise ValueError(f"a condition on a figure that there is: {', '.join(_FIGURES)}{guess}")
        is_duration = match["figure"] in (*_LATENCIES, "cpu")
        if is_duration and match["limit"].replace(".", "", 1).isdecimal() and float(match["limit"]):
            raise ValueError(
                f"clear without a unit: {part.strip()}ms, or {part.strip()}s, or {part.strip()}us?"
            )
        limit = (parse_duration if is_duration else parse_quantity)(match["limit"])
        objectives.append(Objective(part.strip(), match["figure"], match["sign"], limit))
    return tuple(objectives)


def figure(row: "Row", name: str) -> float | None:
    """Return a result's figure as objectives name it; times in seconds."""
    if name in _LATENCIES:
        latency = row["latency_us"].get(name)
        return None if latency is None else latency / 1e6
    if name == "cpu":
        cpu = row["server"]["cpu_us_per_message"]
        return None if cpu is None else cpu / 1e6
    if name == "errors":
        return float(sum(row["errors"].values()))
    if name == "throughput":
        return row["throughput"]["median"]
    return float(row["dropped"] if name == "dropped" else row["starved"])


def format_figure(name: str, value: float | None) -> str:
    """Return a figure with its unit, as objectives name it."""
    if value is None:
        return "unknown"
    if name == "cpu" or name in _LATENCIES:
        for unit, seconds in (("µs", 1e-6), ("ms", 1e-3)):
            if value < 1000 * seconds:
                return f"{value / seconds:.4g} {unit}"
        return f"{value:.4g} s"
    number = f"{value:,.1f}".removesuffix(".0")
    return f"{number} messages/s" if name == "throughput" else number
