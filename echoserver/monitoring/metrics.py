"""The metrics of a server, in the Prometheus exposition format."""

import platform
from collections import Counter
from collections.abc import Iterator
from typing import Any

from echoserver import __version__
from echoserver.monitoring.counters import COUNTED_OUTCOMES, USUAL_OUTCOMES
from echoserver.monitoring.scoreboard import Account, Scoreboard

# Counters: name, help text, label, and value of the label → field of `Totals` or `Vitals`.
_COUNTERS: list[tuple[str, str, str, dict[str, str]]] = [
    ("connections", "Clients that were served.", "", {"": "connections"}),
    (
        "connections_rejected",
        "Clients that were turned away.",
        "reason",
        {
            "limit": "rejected",
            "per_ip": "rejected_per_ip",
            "denied": "denied",
            "proxy": "proxy_failures",
            "unserved": "unserved",
            "refused": "refused",
        },
    ),
    (
        "connections_ended",
        "Connections that have ended.",
        "reason",
        COUNTED_OUTCOMES | USUAL_OUTCOMES,
    ),
    (
        "bytes",
        "Bytes of application data: in, out, and discarded after the server had ended its side.",
        "direction",
        {"in": "bytes_in", "out": "bytes_out", "discarded": "bytes_discarded"},
    ),
    (
        "accept_errors",
        "Errors of accept(2).",
        "errno",
        {
            "EMFILE": "accept_emfile",
            "ENFILE": "accept_enfile",
            "ENOBUFS": "accept_enobufs",
            "ENOMEM": "accept_enomem",
            "ECONNABORTED": "accept_econnaborted",
            "other": "accept_other",
        },
    ),
    ("handler_errors", "Connections whose handler failed.", "", {"": "handler_errors"}),
    (
        "lines_dropped",
        "Log lines that were dropped, because stderr or the access log's writer did not take them.",
        "log",
        {"events": "log_lines_dropped", "access": "access_lines_dropped"},
    ),
]


class MetricsPage:
    """The page of metrics that Prometheus scrapes."""

    def __init__(self, scoreboard: Scoreboard, start_time: float) -> None:
        from prometheus_client import CollectorRegistry

        self._scoreboard, self._start_time = scoreboard, start_time
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def ready(self) -> bool:
        """Whether the server accepts clients."""
        serving = any(serves for _, serves, _ in self._scoreboard.accounts())
        return serving and not self._scoreboard.everyone_drains

    def text(self) -> tuple[bytes, str]:
        """Return the page and its content type."""
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Any]:
        """Yield all metrics; the registry calls this for every page."""
        accounts = [(str(number), account) for number, _, account in self._scoreboard.accounts()]
        yield from self._counters(accounts)
        yield from self._gauges(accounts)

    def _counters(self, accounts: list[tuple[str, Account]]) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        for name, help_text, label, names in _COUNTERS:
            labels = ["worker", label] if label else ["worker"]
            family = CounterMetricFamily(f"echoserver_{name}", help_text, labels=labels)
            for worker in sorted({worker for worker, _ in accounts}):
                parts = [account for number, account in accounts if number == worker]
                for value, field in names.items():
                    family.add_metric(
                        [worker, value] if label else [worker],
                        sum(_count(account, field) for account in parts),
                    )
            yield family
        yield CounterMetricFamily(
            "echoserver_access_log_lines_lost",
            "Lines that the access log's file did not take.",
            value=self._scoreboard.lost_lines,
        )
        yield CounterMetricFamily(
            "echoserver_worker_restarts",
            "Workers that were started to replace one that had died.",
            value=self._scoreboard.restarts,
        )

    def _gauges(self, accounts: list[tuple[str, Account]]) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        labels = ["version", "python", "implementation"]
        build = GaugeMetricFamily(
            "echoserver_build_info",
            "Always 1; the labels tell which version serves, on which Python.",
            labels=labels,
        )
        python, implementation = platform.python_version(), platform.python_implementation()
        build.add_metric([__version__, python, implementation], 1.0)
        yield build
        counts: Counter[str] = Counter()
        for worker, account in accounts:
            counts[worker] += account.vitals.open
        gauge = GaugeMetricFamily(
            "echoserver_connections_open", "Clients that are being served.", labels=["worker"]
        )
        for worker, count in sorted(counts.items()):
            gauge.add_metric([worker], count)
        yield gauge
        for name, help_text, value in self._server_gauges():
            yield GaugeMetricFamily(f"echoserver_{name}", help_text, value=float(value))

    def _server_gauges(self) -> Iterator[tuple[str, str, float]]:
        """Yield the name, help text and value of each gauge of the whole server."""
        scoreboard = self._scoreboard
        waiting, limit = scoreboard.queue
        successful, reload_time = scoreboard.last_reload
        if scoreboard.certificate_expiry:
            yield (
                "certificate_expiry_timestamp_seconds",
                "When the server's certificate expires, in Unix time.",
                scoreboard.certificate_expiry,
            )
        yield "draining", "1 while the server drains.", scoreboard.everyone_drains
        yield "ready", "1 while the server accepts clients.", self.ready
        yield "accept_queue", "Clients in the kernel's queue that wait to be accepted.", waiting
        yield "accept_queue_limit", "How many clients the kernel's queue may hold.", limit
        yield (
            "last_reload_successful",
            "1 if the last reload succeeded, 0 if it failed and changed nothing.",
            successful,
        )
        yield (
            "last_reload_timestamp_seconds",
            "When the configuration was last read, in Unix time.",
            reload_time,
        )
        yield "start_time_seconds", "When the server started, in Unix time.", self._start_time


def _count(account: Account, field: str) -> int:
    counters: Any = account.totals if hasattr(account.totals, field) else account.vitals
    return int(getattr(counters, field))
