"""The rounds of one server, and the figures computed from them."""

from collections import Counter
from dataclasses import dataclass, field

from clients.content import WRONG
from clients.recording import histogram
from loadtest.load.round import Round
from loadtest.machine.usage import WatchedProcesses
from loadtest.results.schema import (
    ClientFigures,
    EarlyEnd,
    OtherPython,
    Row,
    ServerFigures,
    Spread,
    Sweep,
)
from loadtest.results.statistics import (
    interval,
    median,
    percentiles,
    unstable,
)

FIGURES = ("cpu_us_per_message", "throughput")


@dataclass(slots=True)
class Result:
    """All rounds of one target under one workload."""

    target: str
    backend: str | None
    handler: str
    connections: int
    sweep: Sweep = field(default_factory=dict)
    """The values that a sweep sets, by the option's name."""
    interpreter: OtherPython | None = None
    rounds: list[Round] = field(default_factory=list)
    stop_reason: str = ""
    """Why it has no more rounds; empty: all of them were run."""

    @property
    def errors(self) -> Counter[str]:
        """Failed connections by kind, over all rounds."""
        return sum((one.load.errors for one in self.rounds), Counter[str]())

    @property
    def verified(self) -> int:
        """Verified messages, over all rounds."""
        return sum(one.load.verified for one in self.rounds)

    @property
    def client_limited(self) -> bool:
        """In most rounds, the client was the limit."""
        return sum(bool(one.limit) for one in self.rounds) * 2 > len(self.rounds)

    @property
    def ended_early(self) -> list[EarlyEnd]:
        """Rounds that were over before their time, by their number (from 1), and why."""
        return [
            {
                "round": number,
                "because": early.because,
                "seconds": early.seconds,
                "server_gone": early.server_gone,
                "exit_code": early.exit_code,
            }
            for number, one in enumerate(self.rounds, 1)
            if (early := one.ended_early)
        ]

    @property
    def starves(self) -> bool:
        """In some round, a connection that sent got no reply: the rate is that of the others."""
        return any(one.load.served < one.asking for one in self.rounds)

    @property
    def failure(self) -> str:
        """Why this is not a measurement, as the end of a sentence; empty: it is one."""
        early_ends = [
            (n, one.ended_early) for n, one in enumerate(self.rounds, 1) if one.ended_early
        ]
        if not self.verified:
            server_ends = [early.how for _, early in early_ends if early.server_gone]
            return "; ".join(["nothing was verified", *server_ends[:1]])
        if not early_ends:
            return ""
        number, first = early_ends[0]
        if len(self.rounds) == 1:
            return str(first)
        many = f"{len(early_ends)} of {len(self.rounds)} rounds ended early"
        return f"{many}; in round {number}, {first.how}"

    @property
    def remarks(self) -> list[str]:
        """Sentences that a reader of these figures must know, without the target's name."""
        sentences = []
        if self.verified and self.ended_early:
            duration = self.rounds[0].duration
            time = f"Its rate counts all of the {duration:g} s asked for. " if duration else ""
            sentences.append(f"{self.failure}. {time}It is not ranked, and meets no objective.")
        empty = sum(not one.load.verified for one in self.rounds)
        if self.verified and empty:
            sentences.append(
                f"{empty} of {len(self.rounds)} rounds verified nothing; they are in the median of "
                "messages/s as 0, leave CPU per message unknown, and it is not ranked."
            )
        processes = self.server_processes
        if processes and processes.by_socket:
            sentences.append(
                f"watched: {processes}, by the listening socket. Of servers that it passes "
                "connections on to, the CPU and memory are not counted."
            )
        return sentences

    @property
    def server_processes(self) -> WatchedProcesses | None:
        """The processes that the server's figures are of, in the round that had most of them."""
        candidates = [one.server_processes for one in self.rounds if one.server_processes]
        return max(candidates, key=lambda one: sum(one.programs.values()), default=None)

    @property
    def wrong(self) -> bool:
        """Some reply was wrong."""
        return any(self.errors[kind] for kind in WRONG)

    def figure(self, name: str) -> list[float]:
        """Return each round's throughput or CPU per message; empty if a round has none."""
        values = [getattr(one, name) for one in self.rounds]
        return values if all(values) else []

    def as_json(self) -> Row:
        """Return the row of this result in a document."""
        rounds = [one.throughput for one in self.rounds]
        cpu = self.figure("cpu_us_per_message")
        latency, raw, lag, recovery = histogram(), histogram(), histogram(), histogram()
        first_errors: dict[str, str] = {}
        for one in self.rounds:
            latency.add(one.load.latency)
            raw.add(one.load.raw)
            lag.add(one.load.lag)
            recovery.add(one.load.recovery)
            first_errors = one.load.first_errors | first_errors
        reasons = [reason for one in self.rounds for reason in one.limit.reasons]
        median_round = sorted(self.rounds, key=lambda one: one.throughput)[len(self.rounds) // 2 :][
            :1
        ]
        row: Row = {
            "target": self.target,
            "backend": self.backend,
            "handler": self.handler,
            "connections": self.connections,
            "sweep": self.sweep,
            "interpreter": self.interpreter,
            "connections_served": min((one.load.served for one in self.rounds), default=0),
            "connections_made": min(
                (n for one in self.rounds if (n := one.connections_made) is not None), default=None
            ),
            "throughput": _spread(rounds, 1),
            "latency_us": percentiles(latency),
            "raw_latency_us": percentiles(raw),
            "lag_us": percentiles(lag),
            "latency_histogram": latency.encode().decode("ascii"),
            "errors": {kind: count for kind, count in sorted(self.errors.items()) if count},
            "first_errors": first_errors,
            "verified": self.verified,
            "drained": sum(one.load.drained for one in self.rounds),
            "dropped": sum(one.load.dropped for one in self.rounds),
            "unsent": sum(one.load.unsent for one in self.rounds),
            "ended_idle": sum(one.load.ended_idle for one in self.rounds),
            "reconnects": sum(one.load.reconnects for one in self.rounds),
            "recovery_us": percentiles(recovery),
            "starved": max((one.load.starved for one in self.rounds), default=0),
            "server": self._server_figures(cpu),
            "client": self._client_figures(),
            "client_limited": self.client_limited,
            "client_limited_rounds": sum(bool(one.limit) for one in self.rounds),
            "client_limited_because": Counter(reasons).most_common(1)[0][0] if reasons else None,
            "unstable": unstable(rounds) or unstable(cpu),
            "series": median_round[0].series if median_round else [],
            "ended_early": self.ended_early,
            "rounds_without_a_reply": sum(not one.load.verified for one in self.rounds),
            "starves": self.starves,
            "remarks": self.remarks,
        }
        if self.stop_reason:
            row["failed"] = self.stop_reason
        return row

    def _server_figures(self, cpu: list[float]) -> ServerFigures:
        peaks = [one.peaks for one in self.rounds if one.peaks is not None]
        pss = [one.server_pss_bytes for one in self.rounds if one.server_pss_bytes is not None]
        processes = self.server_processes
        return {
            "cpu_us_per_message": round(median(cpu), 2) if cpu else None,
            "cpu": _spread(cpu, 3),
            "peak_rss_bytes": max((peak.rss_bytes for peak in peaks), default=None),
            "pss_bytes": max(pss, default=None),
            "threads": max((peak.threads for peak in peaks), default=None),
            "processes": max((peak.processes for peak in peaks), default=None),
            "watched": {"programs": processes.programs, "by_socket": processes.by_socket}
            if processes
            else None,
        }

    def _client_figures(self) -> ClientFigures:
        # A round that was over at once took no time, so it has no shares of it.
        rounds = [one for one in self.rounds if one.client_cpu_percent]
        if not rounds:
            return {"cpu_percent": None, "waited_percent": None}
        return {
            "cpu_percent": round(median([one.client_cpu_percent for one in rounds]), 1),
            "waited_percent": round(median([one.client_wait_percent for one in rounds]), 1),
        }


def _spread(values: list[float], digits: int) -> Spread:
    if not values:
        nothing = None
        return Spread(
            median=nothing, low=nothing, high=nothing, min=nothing, max=nothing, rounds=[]
        )
    median_interval = interval(values)
    return Spread(
        median=round(median_interval.median, digits),
        low=round(median_interval.low, digits),
        high=round(median_interval.high, digits),
        min=round(min(values), digits),
        max=round(max(values), digits),
        rounds=[round(value, digits) for value in values],
    )
