"""The seconds of a run, over all processes."""

from typing import Any

from clients.recording import histogram


class IntervalTotals:
    """One second of a run, over all processes."""

    def __init__(self) -> None:
        self.heard = 0
        self.seconds = 0.0
        self.errors = 0
        self.latency = histogram()

    def as_json(self) -> dict[str, Any]:
        """Return the value that stands in a time series."""
        messages = self.latency.get_total_count()
        return {
            "seconds": round(self.seconds, 3),
            "messages": messages,
            "errors": self.errors,
            "p50_us": self.latency.get_value_at_percentile(50) if messages else None,
            "p99_us": self.latency.get_value_at_percentile(99) if messages else None,
            "max_us": self.latency.get_max_value() if messages else None,
        }


NO_LATENCY = dict.fromkeys(("p50_us", "p99_us", "max_us"))
