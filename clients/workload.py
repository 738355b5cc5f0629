"""What is asked of a server: one value, the same for every engine and every process."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clients.distributions import Sizes, parse_sizes

if TYPE_CHECKING:
    from clients.tls import Trust


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a server. Times are in seconds, sizes in bytes."""

    host: str
    port: int
    connections: int = 400
    duration: float | None = 5.0
    """How long to ask; None: until `messages` are answered."""
    messages: int | None = None
    """How many messages in all, shared out over the connections."""
    size: int | str = 64
    """Of a message: a number, or what `clients.distributions.parse_sizes` takes."""
    pipeline: int = 1
    """How many messages a connection sends before it waits for the first one's reply."""
    rate: float | None = None
    """Messages that are due in a second, over all connections, however fast the server is (an open
    loop); None: each connection asks as soon as it is answered (a closed loop)."""
    rate_end: float | None = None
    """The rate rises or falls evenly to this one until the end of `duration`; None: it stays."""
    think: str | None = None
    """How long to wait after a reply: what `clients.distributions.parse_pauses` takes."""
    warmup: float = 0.0
    """So long it is asked before anything counts."""
    timeout: float = 10.0
    """For connecting, and for one reply."""
    seed: int = 1
    active: int | None = None
    """How many of the connections ask; the others are open and silent. None: all."""
    reconnect_every: int | None = None
    """After so many messages the client reconnects, and that time counts; None: never."""
    reconnect: bool = False
    """A connection that the server ends, or that breaks, is made again; what was not answered on it
    is sent again."""
    proxy_header: str | None = None
    """Each connection begins with a header of the PROXY protocol: ``v1`` or ``v2``; None: none."""
    handler: str = "echo"
    """The server's handler: a name or a class, as the server takes it; `answers` tells what it
    answers."""
    tls: bool = False
    """Speak TLS; the following are as in `clients.tls.Trust`."""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    insecure: bool = False

    @property
    def sizes(self) -> Sizes:
        """How large messages are."""
        return parse_sizes(self.size)

    @property
    def trust(self) -> "Trust | None":
        """Which servers to trust; None: it is not TLS."""
        from clients.tls import Trust  # noqa: PLC0415 - ssl is large

        return Trust(self.ca, self.cert, self.key, self.insecure) if self.tls else None

    @property
    def asking(self) -> int:
        """How many connections ask."""
        return min(self.active or self.connections, self.connections)

    @property
    def schedule(self) -> "Schedule | None":
        """When messages are due; None in a closed loop."""
        if self.rate is None:
            return None
        return Schedule(self.rate, self.rate_end, self.duration or 0.0, self.warmup)

    def shares(self) -> list[int | None]:
        """Return how many messages each connection sends; None: as many as the time allows."""
        total, count = self.messages, self.asking
        silent = [0] * (self.connections - count)
        if total is None:
            return [*([None] * count), *silent]
        return [*(total // count + (number < total % count) for number in range(count)), *silent]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When each message is due: at an even rate, or one that changes evenly.

    Args:
        rate: Messages a second, at first.
        end: At the end; None: the same.
        duration: Seconds from the end of the warm-up, in which the one becomes the other.
        warmup: Seconds before that, at the first rate.
    """

    rate: float
    end: float | None
    duration: float
    warmup: float = 0.0

    def due(self, number: int) -> int:
        """Return the nanosecond, from the start, at which message `number` (from 0) is due."""
        early = self.rate * self.warmup
        if self.end is None or number < early:
            return int(number / self.rate * 1e9)
        # Of an evenly changing rate, so many are due after t: rate·t + slope·t²/2. Solved for t,
        # in the form that is stable for a slope near zero; afterwards it stays at the last rate.
        late = number - early
        slope = (self.end - self.rate) / self.duration
        in_time = (self.rate + self.end) / 2 * self.duration
        if late >= in_time:
            seconds = self.duration + (late - in_time) / self.end
        else:
            root = math.sqrt(max(0.0, self.rate**2 + 2 * slope * late))
            seconds = 2 * late / (self.rate + root)
        return int((self.warmup + seconds) * 1e9)

    def count(self, seconds: float) -> int:
        """Return how many messages are due before so many seconds from the start."""
        first, last = 0, 1
        limit = int(seconds * 1e9)
        while self.due(last) < limit:
            last *= 2
        while first < last:  # the first that is not due before
            middle = (first + last) // 2
            if self.due(middle) < limit:
                first = middle + 1
            else:
                last = middle
        return first
