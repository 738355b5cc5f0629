"""The types of a saved document; `docs/result.schema.json` is made from them.

They are dictionaries, because a document is read from files and written to them again unchanged.
Keys that later versions added may be missing (`NotRequired`).
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from loadtest.load.intervals import IntervalRow
from loadtest.machine.environment import Environment

Sweep = Mapping[str, str | float]
"""The values that a sweep sets, by the option's name."""

Percentiles = Mapping[str, int | None]
"""Microseconds by name: p50, p90, p95, p99, p999, max, and mean; None where nothing was counted."""

Plan = Mapping[str, object]
"""The options of the measurement, by name."""


class Spread(TypedDict):
    """A figure over the rounds; None where it is not known."""

    median: float | None
    low: float | None
    """The ends of its 95 % interval."""
    high: float | None
    min: float | None
    max: float | None
    rounds: list[float]


class WatchedPrograms(TypedDict):
    """The programs that the server's figures are of."""

    programs: Mapping[str, int]
    """Processes by the name of their program."""
    by_socket: bool
    """This command did not start them, but found them by the listening socket."""


class ServerFigures(TypedDict):
    """What the server's processes used."""

    cpu_us_per_message: float | None
    cpu: Spread
    """The same, over the rounds."""
    peak_rss_bytes: int | None
    """Summed over the processes; pages that they share count for each."""
    pss_bytes: int | None
    """Pages that processes share count once."""
    threads: int | None
    processes: int | None
    watched: WatchedPrograms | None


class ClientFigures(TypedDict):
    """What the load client used: 100 is one core."""

    cpu_percent: float | None
    waited_percent: float | None
    """Time that it was ready to run while another process had the CPU."""


class EarlyEnd(TypedDict):
    """A round that was over before its time."""

    round: int
    because: str
    seconds: float
    server_gone: bool
    exit_code: int | None


class OtherPython(TypedDict):
    """The interpreter of a target that runs under another one."""

    version: str
    gil: bool


class Row(TypedDict):
    """One target under one workload."""

    target: str
    """The name of the target in tables."""
    backend: str | None
    """None: the target is not a server of this project."""
    handler: str
    connections: int
    """The connections of the workload, whether or not they were made."""
    sweep: Sweep
    interpreter: OtherPython | None
    """None: the target runs under the Python that measured."""
    connections_served: int
    """Connections that got a reply, in the round with the fewest."""
    connections_made: NotRequired[int | None]
    throughput: Spread
    """Verified messages a second."""
    latency_us: Percentiles
    """From when a message was due to its reply, in microseconds."""
    raw_latency_us: Percentiles
    """From when a message was sent to its reply; only with a rate."""
    lag_us: Percentiles
    """How late the client sent messages; only with a rate."""
    latency_histogram: str
    """Of all rounds, in microseconds, as HdrHistogram encodes it (V2, base64)."""
    errors: dict[str, int]
    """Failed connections by kind."""
    first_errors: dict[str, str]
    """The first of each kind, in words."""
    verified: int
    """Replies that were right, byte for byte."""
    drained: int
    """Replies that came after the time was over."""
    dropped: int
    """Messages that were due and never sent."""
    unsent: NotRequired[int]
    """Dropped messages that had no connection."""
    ended_idle: NotRequired[int]
    """Connections that the server ended while it owed nothing."""
    reconnects: NotRequired[int]
    """Connections that were lost and made again."""
    recovery_us: NotRequired[Percentiles]
    """From the loss of a connection until it was served again."""
    starved: int
    """Connections that sent and never got a reply, in the round with the most."""
    server: ServerFigures
    client: ClientFigures
    client_limited: bool
    """In most rounds, the client was the limit: the rate is a lower bound."""
    client_limited_rounds: NotRequired[int]
    client_limited_because: str | None
    unstable: bool
    """The rounds differ too much to rely on the median."""
    series: list[IntervalRow]
    """The seconds of the median round."""
    ended_early: NotRequired[list[EarlyEnd]]
    rounds_without_a_reply: NotRequired[int]
    starves: NotRequired[bool]
    remarks: NotRequired[list[str]]
    """Sentences that a reader of the figures must know."""
    failed: NotRequired[str]
    """The error after which the target has no more rounds."""


class RatioRow(TypedDict):
    """A ratio of medians, with its 95 % interval."""

    median: float
    low: float
    high: float
    rounds: NotRequired[tuple[float, ...]]


class Pair(TypedDict):
    """Whether two targets differ in a figure."""

    one: str
    two: str
    p: float
    """Adjusted for all pairs (Holm)."""
    different: bool


class ComparedFigure(TypedDict):
    """A figure of all targets under the same workload."""

    ranks: Mapping[str, int]
    """By target; empty where there is no ranking."""
    pairs: list[Pair]
    ratios: Mapping[str, RatioRow]
    """By target: its figure divided by the reference's, round by round."""


class Comparison(TypedDict):
    """All targets under the same workload."""

    sweep: Sweep
    reference: str | None
    """The target with which the others are compared."""
    rounds: int
    """The rounds that all targets have."""
    least_rounds: int
    """The rounds that a ranking of these targets needs."""
    figures: dict[str, ComparedFigure]


class Document(TypedDict):
    """The document of a measurement."""

    schema: str
    environment: Environment
    plan: Plan
    results: list[Row]
    comparison: list[Comparison]
    ratios: Mapping[str, Mapping[str, Mapping[str, RatioRow]]]
    """Backend → peer → figure."""
    notes: list[str]
    """Sentences that a reader must know."""
    interrupted: NotRequired[bool]
    """The measurement was interrupted."""
