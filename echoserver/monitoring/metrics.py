"""What monitoring reads of a server, as Prometheus reads it."""

import platform
from collections import Counter
from collections.abc import Iterator
from typing import Any

from echoserver import __version__
from echoserver.monitoring.counters import COUNTED_OUTCOMES, USUAL_OUTCOMES
from echoserver.monitoring.scoreboard import Account, Scoreboard

# Counters: name, explanation, and label → field of `Totals` or `Vitals`.
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
        "Bytes of content: in, out, and read only to be thrown away after the server's end.",
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
        "Lines that were dropped, because nobody took them.",
        "log",
        {"events": "log_lines_dropped", "access": "access_lines_dropped"},
    ),
]


class MetricsPage:
    """What is read, as Prometheus reads it."""

    def __init__(self, scoreboard: Scoreboard, start_time: float) -> None:
        from prometheus_client import CollectorRegistry

        self._scoreboard, self._start_time = scoreboard, start_time
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def ready(self) -> bool:
        """The server takes clients."""
        serving = any(serves for _, serves, _ in self._scoreboard.all())
        return serving and not self._scoreboard.everyone_drains

    def text(self) -> tuple[bytes, str]:
        """Return the page, and its type."""
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Any]:
        """Yield all metrics; the registry calls it for every page."""
        accounts = [(str(number), account) for number, _, account in self._scoreboard.all()]
        yield from self._counters(accounts)
        yield from self._gauges(accounts)

    def _counters(self, accounts: list[tuple[str, Account]]) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        for name, about, label, of in _COUNTERS:
            labels = ["worker", label] if label else ["worker"]
            family = CounterMetricFamily(f"echoserver_{name}", about, labels=labels)
            for worker in sorted({worker for worker, _ in accounts}):
                mine = [account for number, account in accounts if number == worker]
                for value, field in of.items():
                    family.add_metric(
                        [worker, value] if label else [worker],
                        sum(_figure(account, field) for account in mine),
                    )
            yield family
        yield CounterMetricFamily(
            "echoserver_access_log_lines_lost",
            "Lines that the access log's file did not take.",
            value=self._scoreboard.lost,
        )
        yield CounterMetricFamily(
            "echoserver_worker_restarts",
            "Workers that were started in the place of one that had died.",
            value=self._scoreboard.restarts,
        )

    def _gauges(self, accounts: list[tuple[str, Account]]) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        labels = ["version", "python", "implementation"]
        build = GaugeMetricFamily("echoserver_build_info", "1, by what serves.", labels=labels)
        python, implementation = platform.python_version(), platform.python_implementation()
        build.add_metric([__version__, python, implementation], 1.0)
        yield build
        opened: Counter[str] = Counter()
        for worker, account in accounts:
            opened[worker] += account.vitals.open
        gauge = GaugeMetricFamily(
            "echoserver_connections_open", "Clients that are being served.", labels=["worker"]
        )
        for worker, count in sorted(opened.items()):
            gauge.add_metric([worker], count)
        yield gauge
        for name, about, figure in self._figures():
            yield GaugeMetricFamily(f"echoserver_{name}", about, value=float(figure))

    def _figures(self) -> Iterator[tuple[str, str, float]]:
        """Yield name, explanation and value of what is true of the whole server."""
        scoreboard = self._scoreboard
        waiting, limit = scoreboard.queue
        successful, reloaded = scoreboard.last_reload
        if scoreboard.certificate_expiry:
            yield (
                "certificate_expiry_timestamp_seconds",
                "When the certificate expires that is served with, in Unix time.",
                scoreboard.certificate_expiry,
            )
        yield "draining", "1 while the server comes to its end.", scoreboard.everyone_drains
        yield "ready", "1 while it takes clients.", self.ready
        yield "accept_queue", "Clients that the kernel holds until they are accepted.", waiting
        yield "accept_queue_limit", "How many it may hold.", limit
        yield "last_reload_successful", "0 where the last reload changed nothing.", successful
        yield (
            "last_reload_timestamp_seconds",
            "When the configuration was read the last time, in Unix time.",
            reloaded,
        )
        yield "start_time_seconds", "When the server started, in Unix time.", self._start_time


def _figure(account: Account, field: str) -> int:
    done: Any = account.totals if hasattr(account.totals, field) else account.vitals
    return int(getattr(done, field))
