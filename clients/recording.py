"""What is measured while a load runs: kept in lists, folded into histograms once a second.

HdrHistogram keeps three significant digits from a microsecond to an hour in a table of fixed size,
and tables add up; so memory stays the same however long a run takes, and the figures of many
processes are those of one. Its `record_value` takes nearly a microsecond, though: the hot loops
append to a list, and equal values are counted before they are recorded.
"""

from collections import Counter
from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram

_LOWEST = 1  # microseconds
_HIGHEST = 3_600_000_000
_DIGITS = 3


def histogram() -> HdrHistogram:
    """Return an empty histogram of microseconds."""
    return HdrHistogram(_LOWEST, _HIGHEST, _DIGITS)


def folded(values: list[int]) -> HdrHistogram:
    """Return a histogram of `values`, in microseconds."""
    found = histogram()
    for value, count in Counter(values).items():
        found.record_value(min(max(value, 0), _HIGHEST), count)
    return found


def release(spent: HdrHistogram) -> None:
    """Let a histogram's 180 KiB go as soon as nobody refers to it.

    It and its encoder refer to each other; a load, which makes hardly anything else that the
    collector of cycles would look for, would keep a dozen of them a second for a long time.
    """
    spent.encoder.histogram = None


class Recorder:
    """Where the connections of one process leave what they measure, in microseconds."""

    def __init__(self) -> None:
        self.latencies: list[int] = []
        """From when a message was sent (with a schedule: from when it was due) to its reply."""
        self.raw: list[int] = []
        """With a schedule: from when it was sent to its reply."""
        self.lag: list[int] = []
        """From when a message could be sent to when it was: how late we ourselves are."""
        self.recoveries: list[int] = []
        """From when a connection was lost to the first reply on the one made after it."""

    def take(self) -> tuple[HdrHistogram, HdrHistogram, HdrHistogram]:
        """Return what came since the last time: latencies, raw ones, lag."""
        latencies, raw, lag = (_cut(values) for values in (self.latencies, self.raw, self.lag))
        return folded(latencies), folded(raw), folded(lag)


def _cut(values: list[int]) -> list[int]:
    """Empty a list to which other threads append; each of the two steps is atomic."""
    count = len(values)
    taken = values[:count]
    del values[:count]
    return taken


@dataclass(slots=True)
class Second:
    """What came of one second of a run (at its end, of less); valid while one is told of it."""

    number: int
    """From 0, counted from the end of the warm-up."""
    seconds: float
    errors: int
    """So far."""
    latency: HdrHistogram = field(default_factory=histogram)
    raw: HdrHistogram = field(default_factory=histogram)
    lag: HdrHistogram = field(default_factory=histogram)

    def release(self) -> None:
        """Let go of the histograms, which nobody needs any more."""
        for spent in (self.latency, self.raw, self.lag):
            release(spent)
