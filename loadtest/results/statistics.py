"""Figures from counts and rounds, and what may be said of their differences."""

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev
from statistics import median as median  # noqa: PLC0414 - one place to ask for figures
from typing import TypeVar

from hdrh.histogram import HdrHistogram

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9, "max": 100.0}

_RESAMPLES = 2000
_CONFIDENCE = 0.95
SIGNIFICANT = 0.05
_EXACT = 900  # pairs of values, above which the exact test takes too long

_SPREAD = 0.10  # standard deviation, as a share of the mean, from which rounds are unstable
_OUTLIER = 0.50  # distance of the furthest round from the mean, likewise


def percentiles(counts: HdrHistogram) -> dict[str, int | None]:
    """Return the percentiles of a histogram of microseconds; None where it is empty."""
    if not counts.get_total_count():
        return dict.fromkeys(PERCENTILES)
    found: dict[str, int | None] = {
        name: int(counts.get_value_at_percentile(share)) for name, share in PERCENTILES.items()
    }
    found["mean"] = round(_mean(counts))
    return found


def _mean(counts: HdrHistogram) -> float:
    """Return what `get_mean_value` does; that takes 0.1 s, for it visits all empty buckets, too."""
    total = 0
    for index, count in enumerate(counts.counts):
        if count:
            low = counts.get_value_from_index(index)
            middle = (low + counts.get_highest_equivalent_value(low) + 1) // 2
            total += count * middle
    return total / int(counts.get_total_count())


# -- how sure a figure is ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and the 95 % interval of it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio(Interval):
    """The median of per-round ratios, and a 95 % interval of it."""

    rounds: tuple[float, ...]


def interval(values: Sequence[float], seed: int = 1) -> Interval:
    """Return the median of `values` and its percentile-bootstrap interval.

    That is how far the median moves when the rounds are drawn again, with replacement (Efron 1979).
    """
    draw = random.Random(seed)
    return _around(
        median(values), (median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    )


def _around(middle: float, drawn: Iterable[float]) -> Interval:
    """Return what most of the redrawn figures lie within."""
    figures = sorted(drawn)
    tail = round(len(figures) * (1 - _CONFIDENCE) / 2)
    return Interval(middle, figures[tail], figures[-1 - tail])


def paired_ratio(values: Sequence[float], reference: Sequence[float], seed: int = 1) -> Ratio:
    """Return how many times `reference` the `values` are, round by round.

    What changes from round to round on the machine falls on both, and so cancels out.
    """
    ratios = [value / other for value, other in zip(values, reference, strict=True) if other]
    found = interval(ratios, seed)
    return Ratio(found.median, found.low, found.high, tuple(ratios))


def unpaired_ratio(values: Sequence[float], reference: Sequence[float], seed: int = 1) -> Interval:
    """Return how many times `reference` the `values` are, of rounds that were made apart."""
    draw = random.Random(seed)
    return _around(
        median(values) / median(reference),
        (
            median(draw.choices(values, k=len(values)))
            / median(draw.choices(reference, k=len(reference)))
            for _ in range(_RESAMPLES)
        ),
    )


def unstable(values: Sequence[float]) -> bool:
    """Tell whether rounds differ so much that more of them, or a quieter machine, are needed.

    The rule is pyperf's: a standard deviation of more than 10 % of the mean, or a value further
    than 50 % from it.
    """
    if len(values) < 2 or not (middle := mean(values)):  # noqa: PLR2004 - one has no spread
        return False
    furthest = max(abs(value - middle) for value in values)
    return stdev(values) > _SPREAD * middle or furthest > _OUTLIER * middle


Key = TypeVar("Key", bound=Hashable)

# -- whether two differ --------------------------------------------------------------------------


def mann_whitney(one: Sequence[float], two: Sequence[float]) -> float:
    """Return the probability that two samples of one thing differ by as much as these, or more.

    The test of Mann and Whitney (1947), two-sided and exact, ties included: among all ways to deal
    the values into two hands of these sizes, the share of those whose rank sum is at least as far
    from the middle. It supposes nothing of the values but that they can be ordered.
    """
    if not one or not two:
        return 1.0
    if len(one) * len(two) > _EXACT:
        return _approximate(one, two)
    # Twice the mean rank: whole numbers, where ties have halves.
    pooled = Counter([*one, *two])
    ranks: dict[float, int] = {}
    below = 0
    for value in sorted(pooled):
        ranks[value] = 2 * below + pooled[value] + 1
        below += pooled[value]
    ways: list[Counter[int]] = [Counter({0: 1}), *(Counter() for _ in one)]
    for value in [*one, *two]:  # in how many ways so many values have a sum
        for count in range(len(one), 0, -1):
            for total, number in ways[count - 1].items():
                ways[count][total + ranks[value]] += number
    middle = len(one) * (below + 1)
    distance = abs(sum(ranks[value] for value in one) - middle)
    dealt = ways[len(one)]
    as_far = sum(number for total, number in dealt.items() if abs(total - middle) >= distance)
    return as_far / dealt.total()


def _approximate(one: Sequence[float], two: Sequence[float]) -> float:
    """Return the same for many values: U is then nearly normal, its variance less for ties."""
    pooled = Counter([*one, *two])
    wins = sum((a > b) + (a == b) / 2 for a in one for b in two)
    n, m = len(one), len(two)
    ties = sum(count**3 - count for count in pooled.values()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - ties)
    if not variance:
        return 1.0
    distance = max(0.0, abs(wins - n * m / 2) - 0.5)  # continuity
    return math.erfc(distance / math.sqrt(2 * variance))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return p-values adjusted for being many (Holm 1979).

    With each of them below 5 %, the probability that *any* difference is none is below 5 %.
    """
    adjusted: dict[Key, float] = {}
    least = 0.0
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(p_values) - place)))
        adjusted[key] = least
    return adjusted


def least_rounds(targets: int) -> int:
    """Return how many rounds it takes before any difference among `targets` can be significant.

    The clearest result that n rounds each can have is that all of the one are below all of the
    other: 2 of C(2n, n) ways. Holm asks it to be below 5 % divided by the number of pairs.
    """
    pairs = max(1, targets * (targets - 1) // 2)
    rounds = 2
    while 2 / math.comb(2 * rounds, rounds) > SIGNIFICANT / pairs:
        rounds += 1
    return rounds


@dataclass(frozen=True, slots=True)
class Ranking:
    """Who comes before whom, as far as that can be said."""

    ranks: dict[str, int]
    """1 is the best; those that cannot be told apart from nobody better share a rank."""
    adjusted: dict[tuple[str, str], float]
    """For each pair, the p-value after Holm."""

    def different(self, one: str, two: str) -> bool:
        """Tell whether two differ, beyond what chance would do."""
        p = self.adjusted.get((one, two), self.adjusted.get((two, one), 1.0))
        return p <= SIGNIFICANT


def rank(rounds: Mapping[str, Sequence[float]], *, lowest_first: bool) -> Ranking:
    """Compare all with all, and rank them: each after as many as are significantly better.

    Args:
        rounds: Each one's values.
        lowest_first: A low value is a good one.
    """
    names = list(rounds)
    pairs = {(a, b): mann_whitney(rounds[a], rounds[b]) for a, b in combinations(names, 2)}
    ranking = Ranking({}, holm(pairs))
    for name in names:
        mine = median(rounds[name])
        ranking.ranks[name] = 1 + sum(
            (mine - median(rounds[other])) * (1 if lowest_first else -1) > 0
            and ranking.different(name, other)
            for other in names
            if other != name
        )
    return ranking
