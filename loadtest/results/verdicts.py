"""Whether a measurement meets its objectives, and is no worse than an earlier one (baseline)."""

import math
from dataclasses import dataclass

from loadtest.results.document import label
from loadtest.results.objectives import Objective, figure, shown
from loadtest.results.schema import Row
from loadtest.results.statistics import SIGNIFICANT, holm, mann_whitney, unpaired_ratio


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of thresholds, as sentences."""

    broken: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    """What cannot be said of this measurement, either way."""
    held: tuple[str, ...] = ()
    """What holds of all that was measured; nothing where something does not."""


def check_objectives(rows: list[Row], objectives: tuple[Objective, ...]) -> Verdict:
    """Hold each result to each objective. What ended early meets none."""
    one_by_one = [judge(row, objective) for row in rows for objective in objectives]
    # Of what ended early, it is the same sentence for each of them.
    broken = dict.fromkeys(sentence for verdict in one_by_one for sentence in verdict.broken)
    unsure = tuple(sentence for verdict in one_by_one for sentence in verdict.unsure)
    if broken or unsure or not objectives:
        return Verdict(tuple(broken), unsure)
    return Verdict(held=(_all_hold(rows, objectives),))


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


def check_regressions(rows: list[Row], baseline: list[Row], most: float) -> Verdict:
    """Hold each result to what it was before.

    It is a regression where the median is worse by more than `most` (a share), and the rounds
    differ beyond what chance would do (Mann-Whitney, Holm over all that is compared). Where the
    median is worse and the rounds do not tell, more of them are needed.

    Args:
        rows: The measurement.
        baseline: Of an earlier one.
        most: How much worse is allowed, as a share.
    """
    before = {label(row): row for row in baseline}
    worse: dict[str, float] = {}
    p_values: dict[str, float] = {}
    unsure: list[str] = []
    compared: dict[str, None] = {}
    for now in rows:
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
    without = [label(row) for row in rows if label(row) not in compared]
    not_held = f"; not compared: {', '.join(without)}" if without else ""
    nothing = f"the baseline holds: nothing is worse by more than {100 * most:.3g} %"
    return Verdict(held=(f"{nothing}; the worst: {worst}{not_held}",))
