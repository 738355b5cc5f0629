"""What came of a load."""

from collections import Counter
from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram

from clients.recording import Second, histogram


@dataclass(slots=True)
class LoadResult:
    """What came of it."""

    verified: int = 0
    """Messages whose reply was right to the byte, within the time."""
    drained: int = 0
    """Replies, right too, that were under way when the time was over."""
    dropped: int = 0
    """Messages that were due within the time, and could not be sent in it."""
    starved: int = 0
    """Connections that were made, and never got a byte back."""
    served: int = 0
    """Connections that got at least one reply, within the time."""
    seconds: float = 0.0
    """From the end of the warm-up to the end of the time, or to the last of so many messages.

    The time that was asked for, also where every connection failed before its end.
    """
    cpu_share: float = 0.0
    """CPU time of this process while it was at work, as a share of a core."""
    wait_share: float = 0.0
    """Time for which its loop could have run, and something else did, likewise."""
    errors: Counter[str] = field(default_factory=Counter)
    """Connections that failed, by kind; unless they are made again, they stay out."""
    ended_idle: int = 0
    """Connections that the server ended while it owed nothing on them, which is not an error."""
    gone: int = 0
    """Connections that were not there any more at the end, or never were."""
    unsent: int = 0
    """Of the messages that were dropped, those whose connection was gone."""
    reconnects: int = 0
    """Connections that were lost, made again, and served again."""
    first_errors: dict[str, str] = field(default_factory=dict)
    """For each kind, what happened first."""
    latency: HdrHistogram = field(default_factory=histogram)
    """Microseconds from when a message was sent (with a rate: was due) to its complete reply."""
    raw: HdrHistogram = field(default_factory=histogram)
    """With a rate: microseconds from when it was sent."""
    lag: HdrHistogram = field(default_factory=histogram)
    """Microseconds by which messages were sent later than they could have been."""
    recovery: HdrHistogram = field(default_factory=histogram)
    """Microseconds from the loss of a connection until it was served again."""

    def add_counts(self, other: "LoadResult") -> None:
        """Take in what another process of the same run counted; its histograms come by themselves.

        `verified` comes with them.
        """
        self.drained += other.drained
        self.dropped += other.dropped
        self.starved += other.starved
        self.served += other.served
        self.seconds = max(self.seconds, other.seconds)
        self.cpu_share += other.cpu_share
        self.wait_share += other.wait_share
        self.errors += Counter(other.errors)
        self.ended_idle += other.ended_idle
        self.gone += other.gone
        self.unsent += other.unsent
        self.reconnects += other.reconnects
        self.first_errors = other.first_errors | self.first_errors

    def add(self, second: Second) -> None:
        """Take in what was measured in a second."""
        self.verified += second.latency.get_total_count()
        self.latency.add(second.latency)
        self.raw.add(second.raw)
        self.lag.add(second.lag)
