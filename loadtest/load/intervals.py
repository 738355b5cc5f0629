"""The seconds of a run, over all processes."""

from typing import TypedDict

from clients.recording import histogram


class IntervalRow(TypedDict):
    """One second of a run, as it stands in a time series."""

    second: int
    """Which, from 0."""
    seconds: float
    """How much of it was measured."""
    messages: int
    errors: int
    """Since the start."""
    p50_us: int | None
    p99_us: int | None
    max_us: int | None


class IntervalTotals:
    """One second of a run, over all processes."""

    def __init__(self) -> None:
        self.heard = 0
        self.seconds = 0.0
        self.errors = 0
        self.latency = histogram()

    def as_json(self, second: int) -> IntervalRow:
        """Return what stands in a time series, where this is its second `second`."""
        messages = self.latency.get_total_count()
        return {
            "second": second,
            "seconds": round(self.seconds, 3),
            "messages": messages,
            "errors": self.errors,
            "p50_us": self.latency.get_value_at_percentile(50) if messages else None,
            "p99_us": self.latency.get_value_at_percentile(99) if messages else None,
            "max_us": self.latency.get_max_value() if messages else None,
        }
