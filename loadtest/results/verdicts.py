"""Whether a measurement meets its objectives, and is not worse than an earlier one (baseline)."""

import math
from dataclasses import dataclass

from loadtest.results.document import label
from loadtest.results.objectives import Objective, figure, format_figure
from loadtest.results.schema import Row
from loadtest.results.statistics import SIGNIFICANT, holm, mann_whitney, unpaired_ratio


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on objectives or on a baseline, as sentences."""

    violations: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """What this measurement can neither confirm nor refute."""
    confirmations: tuple[str, ...] = ()
    """What holds for everything that was measured; empty if something does not."""


def check_objectives(rows: list[Row], objectives: tuple[Objective, ...]) -> Verdict:
    """Hold each result to each objective. A result that ended early meets none."""
    verdicts = [judge(row, objective) for row in rows for objective in objectives]
    # A result that ended early has the same sentence for each objective.
    violations = dict.fromkeys(sentence for verdict in verdicts for sentence in verdict.violations)
    doubts = tuple(sentence for verdict in verdicts for sentence in verdict.doubts)
    if violations or doubts or not objectives:
        return Verdict(tuple(violations), doubts)
    return Verdict(confirmations=(_all_hold(rows, objectives),))


def judge(row: Row, objective: Objective) -> Verdict:
    """Hold a result to an objective."""
    if row.get("ended_early"):
        return Verdict((f"{label(row)}: no objective is met, because it ended early",))
    if objective.holds(row):
        return Verdict()
    value = format_figure(objective.figure, figure(row, objective.figure))
    sentence = f"{label(row)}: {objective.figure} {value}, which is not {objective.bound}"
    if objective.wants_throughput and row["client_limited"]:
        return Verdict(doubts=(f"{sentence}, and the client was the limit",))
    return Verdict(violations=(sentence,))


def _all_hold(rows: list[Row], objectives: tuple[Objective, ...]) -> str:
    """Return the sentence that names every objective, and how near the nearest result came."""
    parts = []
    for objective in objectives:
        name, is_upper_bound = objective.figure, objective.sign in {"<", "<=", "="}
        values = [(value, row) for row in rows if (value := figure(row, name)) is not None]
        nearest, row = (max if is_upper_bound else min)(values, key=lambda pair: pair[0])
        suffix = f" of {label(row)}" if len(rows) > 1 else ""
        parts.append(f"{name} {format_figure(name, nearest)}{suffix} ({objective.bound})")
    every = "every objective holds" + (f" of all {len(rows)} targets" if len(rows) > 1 else "")
    return f"{every}: {', '.join(parts)}"


def check_regressions(rows: list[Row], baseline: list[Row], max_regression: float) -> Verdict:
    """Hold each result to the baseline.

    It is a regression if the median is worse by more than `max_regression` (a share), and the
    rounds differ significantly (Mann-Whitney, Holm over all comparisons). If the median is worse
    and the difference of the rounds is not significant, more rounds are needed.

    Args:
        rows: The measurement.
        baseline: The rows of an earlier one.
        max_regression: How much worse a figure may be, as a share.
    """
    before = {label(row): row for row in baseline}
    worse: dict[str, float] = {}
    p_values: dict[str, float] = {}
    doubts: list[str] = []
    comparisons: dict[str, None] = {}
    for row in rows:
        earlier = before.get(label(row))
        if earlier is None or row.get("ended_early"):  # an early end is reported as a failure
            continue
        if earlier.get("ended_early"):
            doubts.append(f"{label(row)} ended early in the baseline, so there is nothing to hold")
            continue
        figures = [("server CPU per message", row["server"]["cpu"], earlier["server"]["cpu"], 1)]
        if not row["client_limited"] and not earlier["client_limited"]:
            figures.append(("throughput", row["throughput"], earlier["throughput"], -1))
        for name, spread, earlier_spread, direction in figures:
            if not (earlier_spread["rounds"] and all(earlier_spread["rounds"])):
                continue  # the baseline has no figure to compare with
            if not spread["rounds"]:
                doubts.append(f"{label(row)}: {name} is not known, and was in the baseline")
                continue
            ratio = unpaired_ratio(spread["rounds"], earlier_spread["rounds"])
            sentence = (
                f"{label(row)}: {name} is {ratio.median:.2f} times the baseline's "
                f"[{ratio.low:.2f}, {ratio.high:.2f}]"
            )
            p_values[sentence] = mann_whitney(spread["rounds"], earlier_spread["rounds"])
            worse[sentence] = ratio.median**direction - 1 if ratio.median else math.inf
            comparisons[label(row)] = None
    if not worse and not doubts:
        return Verdict(doubts=("the baseline has nothing to compare these targets with",))
    sure = {sentence for sentence, p in holm(p_values).items() if p <= SIGNIFICANT}
    regressions = [sentence for sentence, share in worse.items() if share > max_regression]
    doubts += [sentence for sentence in regressions if sentence not in sure]
    violations = tuple(sentence for sentence in regressions if sentence in sure)
    if violations or doubts:
        return Verdict(violations, tuple(doubts))
    worst_sentence = max(worse, key=lambda sentence: worse[sentence])
    others = [label(row) for row in rows if label(row) not in comparisons]
    exceptions = f"; not compared: {', '.join(others)}" if others else ""
    summary = f"the baseline holds: nothing is worse by more than {100 * max_regression:.3g} %"
    return Verdict(confirmations=(f"{summary}; the worst: {worst_sentence}{exceptions}",))
