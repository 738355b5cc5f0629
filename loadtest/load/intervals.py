"""The seconds of a run, over all processes."""

from typing import TypedDict

from clients.recording import histogram


class IntervalRow(TypedDict):
    """One second of a run, as it stands in a time series."""

    second: int
    """The number of the second, from 0."""
    seconds: float
    """How much of it was measured."""
    messages: int
    errors: int
    """Failed connections since the start."""
    p50_us: int | None
    p99_us: int | None
    max_us: int | None


class IntervalTotals:
    """One second of a run, over all processes."""

    def __init__(self) -> None:
        self.reports = 0
        """Processes that have reported this second."""
        self.seconds = 0.0
        self.errors = 0
        self.latency = histogram()

    def as_json(self, second: int) -> IntervalRow:
        """Return the row of the time series for second number `second`."""
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
