"""Figures from counts and rounds."""

from collections import Counter
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
