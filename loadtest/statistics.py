"""Figures from counts and rounds."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median as median  # noqa: PLC0414 - one place to ask for figures

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


def percentiles(counts: Counter[int]) -> dict[str, int | None]:
    """Return the percentiles of a value → count table, by the nearest-rank method."""
    total = counts.total()
    found: dict[str, int | None] = dict.fromkeys(PERCENTILES)
    if not total:
        return found
    wanted = list(PERCENTILES.items())
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        while wanted and seen >= wanted[0][1] * total:
            found[wanted.pop(0)[0]] = value
    return found


_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of per-round ratios, and a 95 % interval of it."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]


def paired_ratio(values: Sequence[float], reference: Sequence[float], seed: int = 1) -> Ratio:
    """Return how many times `reference` the `values` are, round by round.

    What changes from round to round on the machine falls on both, and so cancels out. The
    interval is the percentile bootstrap's: how far the median moves when the rounds are drawn
    again, with replacement.
    """
    ratios = [value / other for value, other in zip(values, reference, strict=True) if other]
    draw = random.Random(seed)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    tail = round(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return Ratio(median(ratios), medians[tail], medians[-1 - tail], tuple(ratios))
