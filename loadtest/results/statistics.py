"""Figures from counts and rounds, and the significance of their differences."""

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
_EXACT = 900  # pairs of values; with more, the exact test takes too long

_SPREAD = 0.10  # standard deviation, as a share of the mean, from which rounds are unstable
_OUTLIER = 0.50  # distance of the furthest round from the mean, as a share of the mean


def percentiles(counts: HdrHistogram) -> dict[str, int | None]:
    """Return the percentiles and the mean of a histogram of microseconds; None if it is empty."""
    if not counts.get_total_count():
        return dict.fromkeys(PERCENTILES)
    figures: dict[str, int | None] = {
        name: int(counts.get_value_at_percentile(share)) for name, share in PERCENTILES.items()
    }
    figures["mean"] = round(_mean(counts))
    return figures


def _mean(counts: HdrHistogram) -> float:
    """Return the mean; `get_mean_value` takes 0.1 s, because it visits empty buckets as well."""
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
    """A median, and its 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio(Interval):
    """The median of the ratios of the rounds, and its 95 % interval."""

    rounds: tuple[float, ...]


def interval(values: Sequence[float], seed: int = 1) -> Interval:
    """Return the median of `values` and its percentile-bootstrap interval.

    That is how far the median moves when the rounds are drawn again, with replacement (Efron 1979).
    """
    draw = random.Random(seed)
    return _percentile_interval(
        median(values), (median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    )


def _percentile_interval(centre: float, resamples: Iterable[float]) -> Interval:
    """Return the interval that contains 95 % of the resampled figures."""
    figures = sorted(resamples)
    tail = round(len(figures) * (1 - _CONFIDENCE) / 2)
    return Interval(centre, figures[tail], figures[-1 - tail])


def paired_ratio(values: Sequence[float], reference: Sequence[float], seed: int = 1) -> Ratio:
    """Return how many times `reference` the `values` are, round by round.

    Changes on the machine from round to round affect both, and so cancel out.
    """
    ratios = [value / other for value, other in zip(values, reference, strict=True) if other]
    median_interval = interval(ratios, seed)
    return Ratio(median_interval.median, median_interval.low, median_interval.high, tuple(ratios))


def unpaired_ratio(values: Sequence[float], reference: Sequence[float], seed: int = 1) -> Interval:
    """Return how many times `reference` the `values` are, for rounds of different runs."""
    draw = random.Random(seed)
    return _percentile_interval(
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

# -- whether two samples differ ------------------------------------------------------------------


def mann_whitney(one: Sequence[float], two: Sequence[float]) -> float:
    """Return the probability that two samples of one thing differ by as much as these, or more.

    The test of Mann and Whitney (1947), two-sided and exact, ties included: among all ways to deal
    the values into two hands of these sizes, the share of those whose rank sum is at least as far
    from the middle. It assumes only that the values can be ordered.
    """
    if not one or not two:
        return 1.0
    if len(one) * len(two) > _EXACT:
        return _approximate(one, two)
    # Twice the mean rank, so that ties have whole numbers, too.
    pooled = Counter([*one, *two])
    ranks: dict[float, int] = {}
    below = 0
    for value in sorted(pooled):
        ranks[value] = 2 * below + pooled[value] + 1
        below += pooled[value]
    ways: list[Counter[int]] = [Counter({0: 1}), *(Counter() for _ in one)]
    for value in [*one, *two]:  # the number of ways in which `count` values have a sum
        for count in range(len(one), 0, -1):
            for total, number in ways[count - 1].items():
                ways[count][total + ranks[value]] += number
    middle = len(one) * (below + 1)
    distance = abs(sum(ranks[value] for value in one) - middle)
    subsets = ways[len(one)]
    extreme = sum(number for total, number in subsets.items() if abs(total - middle) >= distance)
    return extreme / subsets.total()


def _approximate(one: Sequence[float], two: Sequence[float]) -> float:
    """Return the p-value for many values: U is nearly normal then, with less variance for ties."""
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
    """Return p-values that are adjusted for multiple comparisons (Holm 1979).

    With each of them below 5 %, the probability that *any* of the differences is due to chance
    is below 5 %.
    """
    adjusted: dict[Key, float] = {}
    adjusted_p = 0.0
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        adjusted_p = max(adjusted_p, min(1.0, p * (len(p_values) - place)))
        adjusted[key] = adjusted_p
    return adjusted


def least_rounds(targets: int) -> int:
    """Return how many rounds it takes before any difference among `targets` can be significant.

    The clearest result of n rounds each is that all values of one target are below all of the
    other: 2 of C(2n, n) ways. Holm requires this to be below 5 % divided by the number of pairs.
    """
    pairs = max(1, targets * (targets - 1) // 2)
    rounds = 2
    while 2 / math.comb(2 * rounds, rounds) > SIGNIFICANT / pairs:
        rounds += 1
    return rounds


@dataclass(frozen=True, slots=True)
class Ranking:
    """The order of targets, as far as their differences are significant."""

    ranks: dict[str, int]
    """1 is the best; a rank is one more than the number of significantly better targets."""
    adjusted: dict[tuple[str, str], float]
    """For each pair, the p-value after Holm."""

    def different(self, one: str, two: str) -> bool:
        """Tell whether two differ, beyond what chance would do."""
        p = self.adjusted.get((one, two), self.adjusted.get((two, one), 1.0))
        return p <= SIGNIFICANT


def rank(rounds: Mapping[str, Sequence[float]], *, lowest_first: bool) -> Ranking:
    """Compare all targets with each other, and rank each after those that are significantly better.

    Args:
        rounds: The values of each target.
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
