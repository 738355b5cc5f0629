"""What a measurement must reach: objectives (SLO), and not to be worse than before (baseline)."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from echoserver.units import parse_duration, parse_quantity
from loadtest.results.document import Document, label
from loadtest.results.result import Row
from loadtest.results.statistics import SIGNIFICANT, holm, mann_whitney, unpaired_ratio

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

    def holds(self, row: Row) -> bool:
        """Tell whether a result meets it; one that has no such figure does not."""
        value = figure(row, self.figure)
        return value is not None and _SIGNS[self.sign](value, self.limit)

    @property
    def bound(self) -> str:
        """The condition without its figure, as ``< 20 ms``."""
        return f"{self.sign} {shown(self.figure, self.limit)}"

    @property
    def wants_throughput(self) -> bool:
        """It asks for a rate, of which a limited client shows only a part."""
        return self.figure == "throughput" and self.sign in {">", ">="}


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Return the objectives that `text` names, separated by commas.

    p50, p90, p95, p99, p999, max and mean are latencies, ``cpu`` is server CPU per message,
    ``errors``, ``dropped`` and ``starved`` are counts, ``throughput`` is in messages a second.

    Raises:
        ValueError: It names none; the message completes "X must be ...".
    """
    found = []
    for part in text.split(","):
        match = _OBJECTIVE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"conditions such as p99<20ms,errors=0,throughput>10k, not {part!r}")
        if match["figure"] not in _FIGURES:
            meant = match["figure"].replace(".", "")
            guess = f"; did you mean {meant}?" if meant in _FIGURES else ""
            raise ValueError(f"a condition on a figure that there is: {', '.join(_FIGURES)}{guess}")
        duration = match["figure"] in (*_LATENCIES, "cpu")
        if duration and match["limit"].replace(".", "", 1).isdecimal() and float(match["limit"]):
            raise ValueError(
                f"clear without a unit: {part.strip()}ms, or {part.strip()}s, or {part.strip()}us?"
            )
        limit = (parse_duration if duration else parse_quantity)(match["limit"])
        found.append(Objective(part.strip(), match["figure"], match["sign"], limit))
    return tuple(found)


def figure(row: Row, name: str) -> float | None:
    """Return a result's figure as objectives name it; times in seconds."""
    value: Any
    if name in _LATENCIES:
        value = row["latency_us"].get(name)
        return None if value is None else value / 1e6
    if name == "cpu":
        value = row["server"]["cpu_us_per_message"]
        return None if value is None else value / 1e6
    if name == "errors":
        return float(sum(row["errors"].values()))
    if name == "throughput":
        value = row["throughput"]["median"]
        return None if value is None else float(value)
    return float(row[name])


def shown(name: str, value: float | None) -> str:
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of thresholds, as sentences."""

    broken: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    """What cannot be said of this measurement, either way."""
    held: tuple[str, ...] = ()
    """What holds of all that was measured; nothing where something does not."""


def check_objectives(found: Document, objectives: tuple[Objective, ...]) -> Verdict:
    """Hold each result to each objective. What ended early meets none."""
    one_by_one = [judge(row, objective) for row in found["results"] for objective in objectives]
    # Of what ended early, it is the same sentence for each of them.
    broken = dict.fromkeys(sentence for verdict in one_by_one for sentence in verdict.broken)
    unsure = tuple(sentence for verdict in one_by_one for sentence in verdict.unsure)
    if broken or unsure or not objectives:
        return Verdict(tuple(broken), unsure)
    return Verdict(held=(_all_hold(found["results"], objectives),))


def judge(row: Row, objective: Objective) -> Verdict:
    """Hold a result to an objective."""
    if row.get("ended_early"):
        return Verdict((f"{label(row)}: no objective is met, because it ended early",))
    if objective.holds(row):
        return Verdict()
    value = shown(objective.figure, figure(row, objective.figure))
    sentence = f"{label(row)}: {objective.figure} {value}, which is not {objective.bound}"
    if objective.wants_throughput and row["client_limited"]:
        return Verdict(unsure=(f"{sentence}, and the client was the limit",))
    return Verdict(broken=(sentence,))


def _all_hold(rows: list[Row], objectives: tuple[Objective, ...]) -> str:
    """Return the sentence that names every objective, and how near the nearest result came."""
    parts = []
    for objective in objectives:
        name, highest = objective.figure, objective.sign in {"<", "<=", "="}
        values = [(value, row) for row in rows if (value := figure(row, name)) is not None]
        nearest, row = (max if highest else min)(values, key=lambda pair: pair[0])
        of = f" of {label(row)}" if len(rows) > 1 else ""
        parts.append(f"{name} {shown(name, nearest)}{of} ({objective.bound})")
    every = "every objective holds" + (f" of all {len(rows)} targets" if len(rows) > 1 else "")
    return f"{every}: {', '.join(parts)}"


def check_regressions(found: Document, baseline: Document, most: float) -> Verdict:
    """Hold each result to what it was before.

    It is a regression where the median is worse by more than `most` (a share), and the rounds
    differ beyond what chance would do (Mann-Whitney, Holm over all that is compared). Where the
    median is worse and the rounds do not tell, more of them are needed.

    Args:
        found: The measurement.
        baseline: An earlier one.
        most: How much worse is allowed, as a share.
    """
    before = {label(row): row for row in baseline["results"]}
    worse: dict[str, float] = {}
    p_values: dict[str, float] = {}
    unsure: list[str] = []
    compared: dict[str, None] = {}
    for now in found["results"]:
        then = before.get(label(now))
        if then is None or now.get("ended_early"):  # which is a failure of its own
            continue
        if then.get("ended_early"):
            unsure.append(f"{label(now)} ended early in the baseline, so there is nothing to hold")
            continue
        figures = [("server CPU per message", now["server"]["cpu"], then["server"]["cpu"], 1)]
        if not now["client_limited"] and not then["client_limited"]:
            figures.append(("throughput", now["throughput"], then["throughput"], -1))
        for name, mine, its, direction in figures:
            if not (its["rounds"] and all(its["rounds"])):
                continue  # there was nothing to be kept
            if not mine["rounds"]:
                unsure.append(f"{label(now)}: {name} is not known, and was in the baseline")
                continue
            ratio = unpaired_ratio(mine["rounds"], its["rounds"])
            sentence = (
                f"{label(now)}: {name} is {ratio.median:.2f} times the baseline's "
                f"[{ratio.low:.2f}, {ratio.high:.2f}]"
            )
            p_values[sentence] = mann_whitney(mine["rounds"], its["rounds"])
            worse[sentence] = ratio.median**direction - 1 if ratio.median else math.inf
            compared[label(now)] = None
    if not worse and not unsure:
        return Verdict(unsure=("the baseline has nothing to compare these targets with",))
    sure = {sentence for sentence, p in holm(p_values).items() if p <= SIGNIFICANT}
    regressions = [sentence for sentence, share in worse.items() if share > most]
    unsure += [sentence for sentence in regressions if sentence not in sure]
    broken = tuple(sentence for sentence in regressions if sentence in sure)
    if broken or unsure:
        return Verdict(broken, tuple(unsure))
    worst = max(worse, key=lambda sentence: worse[sentence])
    without = [label(row) for row in found["results"] if label(row) not in compared]
    not_held = f"; not compared: {', '.join(without)}" if without else ""
    nothing = f"the baseline holds: nothing is worse by more than {100 * most:.3g} %"
    return Verdict(held=(f"{nothing}; the worst: {worst}{not_held}",))
