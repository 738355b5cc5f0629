"""Results: one value per target, saved as versioned JSON, shown as a table."""

import json
import os
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.measure import Round
from loadtest.peers import peers_of
from loadtest.statistics import Ratio, median, paired_ratio, percentiles

if TYPE_CHECKING:
    from rich.console import Console

    from loadtest.hold import Held

SCHEMA = "echoload/1"

_NO_BOUND = 1000  # a file or a pipe has no width; the table takes what it needs
_WIDTH_OF_A_ROW = 120  # below it, targets stand side by side

_HEADINGS = (
    ("target", ""),
    ("messages/s", "median"),
    ("messages/s", "min - max"),
    ("latency ms", "p50"),
    ("latency ms", "p99"),
    ("latency ms", "max"),
    ("connections", "served"),
    ("errors", ""),
    ("server CPU", "µs/message"),
    ("server MiB", "RSS (PSS)"),
    ("client", "CPU"),
)


@dataclass(slots=True)
class Result:
    """All rounds of one target."""

    target: str
    backend: str | None
    handler: str
    connections: int
    rounds: list[Round] = field(default_factory=list)

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
        return sum(one.client_limited for one in self.rounds) * 2 > len(self.rounds)

    @property
    def wrong(self) -> bool:
        """Some reply was not what was owed."""
        return bool(self.errors["mismatch"] or self.errors["foreign"])

    def as_json(self) -> dict[str, Any]:
        """Return the value that stands in ``results[]``."""
        rounds = [one.throughput for one in self.rounds]
        latencies = sum((one.load.latencies_us for one in self.rounds), Counter[int]())
        peaks = [one.peaks for one in self.rounds if one.peaks is not None]
        cpu = [one.cpu_us_per_message for one in self.rounds if one.cpu_us_per_message is not None]
        pss = [one.server_pss_bytes for one in self.rounds if one.server_pss_bytes is not None]
        first_errors: dict[str, str] = {}
        for one in self.rounds:
            first_errors = one.load.first_errors | first_errors
        return {
            "target": self.target,
            "backend": self.backend,
            "handler": self.handler,
            "connections": self.connections,
            "connections_served": min((one.load.served for one in self.rounds), default=0),
            "throughput": {
                "median": round(median(rounds), 1) if rounds else None,
                "min": round(min(rounds), 1) if rounds else None,
                "max": round(max(rounds), 1) if rounds else None,
                "rounds": [round(value, 1) for value in rounds],
            },
            "latency_us": percentiles(latencies),
            "errors": {kind: count for kind, count in sorted(self.errors.items()) if count},
            "first_errors": first_errors,
            "verified": self.verified,
            "starved": max((one.load.starved for one in self.rounds), default=0),
            "server": {
                "cpu_us_per_message": round(median(cpu), 2) if cpu else None,
                "peak_rss_bytes": max((peak.rss_bytes for peak in peaks), default=None),
                "pss_bytes": max(pss, default=None),
                "threads": max((peak.threads for peak in peaks), default=None),
                "processes": max((peak.processes for peak in peaks), default=None),
            },
            "client": {
                "cpu_percent": round(median(one.client_cpu_percent for one in self.rounds), 1)
                if self.rounds
                else None
            },
            "client_limited": self.client_limited,
        }


def show_held(found: "list[Held]") -> None:
    """Print what servers held."""
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    for heading in ("target", "held", "KiB each (PSS)", "accepted in s", "CPU while idle"):
        table.add_column(heading, justify="right" if heading != "target" else "left")
    for one in found:
        held = f"{one.held} of {one.wanted}"
        table.add_row(
            one.target,
            held if one.held == one.wanted else f"[bold red]{held}[/]",
            _or_dash(one.bytes_each, lambda value: f"{value / 1024:.1f}"),
            f"{one.seconds:.2f}",
            f"{one.cpu_percent_idle:.1f} %",
        )
    Console(width=None if sys.stdout.isatty() else _NO_BOUND).print(table)


def save_held(path: str | Path, environment: dict[str, Any], found: "list[Held]") -> None:
    """Write what servers held to `path`.

    Raises:
        OSError: It cannot be written.
    """
    _write(path, {"schema": SCHEMA, "environment": environment, "held": list(map(asdict, found))})


def save(path: str | Path, environment: dict[str, Any], results: list[Result]) -> None:
    """Write all results to `path`, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    document = {
        "schema": SCHEMA,
        "environment": environment,
        "results": [result.as_json() for result in results],
        "ratios": {
            backend: {
                peer: {figure: asdict(ratio) for figure, ratio in figures.items()}
                for peer, figures in peers.items()
            }
            for backend, peers in ratios(results).items()
        },
    }
    _write(path, document)


def _write(path: str | Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2) + "\n"
    final = Path(os.path.realpath(path))  # a link stays one
    if final.exists() and not final.is_file():  # a pipe or a device: there is nothing to replace
        final.write_text(text, encoding="utf-8")
        return
    draft = final.with_name(f".echoload-{os.getpid()}.json")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(final)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def ratios(results: list[Result]) -> dict[str, dict[str, dict[str, Ratio]]]:
    """Compare every backend with its peers: backend → peer → figure → ratio, round by round."""
    by_name = {result.target: result for result in results}
    found: dict[str, dict[str, dict[str, Ratio]]] = {}
    for result in results:
        for name in peers_of(result.backend or ""):
            peer = by_name.get(name)
            if peer is None or not peer.rounds:
                continue
            pairs = list(zip(result.rounds, peer.rounds, strict=False))
            figures = {
                "throughput": [(mine.throughput, its.throughput) for mine, its in pairs],
                "cpu_us_per_message": [
                    (mine.cpu_us_per_message or 0.0, its.cpu_us_per_message or 0.0)
                    for mine, its in pairs
                ],
            }
            found.setdefault(result.target, {})[name] = {
                figure: paired_ratio([mine for mine, _ in values], [its for _, its in values])
                for figure, values in figures.items()
                if all(all(pair) for pair in values)
            }
    return found


def show_ratios(console: "Console", results: list[Result]) -> None:
    """Print what each backend is, measured by its peers."""
    from rich.table import Table

    found = ratios(results)
    if not found:
        return
    table = Table(header_style="bold")
    table.add_column("backend\n")
    table.add_column("peer\n")
    table.add_column("throughput, times\nmedian [95 %]", justify="right")
    table.add_column("server CPU per message, times\nmedian [95 %]", justify="right")
    limited = {result.target for result in results if result.client_limited}
    for backend, peers in found.items():
        for peer, figures in peers.items():
            # Whoever was limited by the client can do more than was measured.
            bound = {(True, True): "? ", (True, False): "≥ ", (False, True): "≤ "}.get(
                (backend in limited, peer in limited), ""
            )
            rate, cpu = figures.get("throughput"), figures.get("cpu_us_per_message")
            table.add_row(
                backend,
                peer,
                _or_dash(rate, lambda ratio, bound=bound: bound + _interval(ratio)),
                _or_dash(cpu, _interval),
            )
    console.print(table)


def _interval(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def show(results: list[Result], notes: list[str]) -> None:
    """Print the table, and under it what a reader must know to read it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _NO_BOUND)
    rows = [result.as_json() for result in results]
    if console.width >= _WIDTH_OF_A_ROW:
        table = Table(header_style="bold")
        for group, name in _HEADINGS:
            table.add_column(f"{group}\n{name}", justify="right" if group != "target" else "left")
        for row in rows:
            table.add_row(*_cells(row))
    else:  # a target a column
        table = Table(show_header=False)
        for cells in zip(
            (f"{group} {name}".strip() for group, name in _HEADINGS),
            *(_cells(row) for row in rows),
            strict=True,
        ):
            table.add_row(*cells, end_section=cells[0] == "target")
        for column in table.columns[1:]:
            column.justify = "right"
    console.print(table)
    show_ratios(console, results)
    for row in rows:
        for kind, first in row["first_errors"].items():
            console.print(f"{row['target']}: first {kind}: {first}", markup=False, highlight=False)
    for note in [*_explain(rows), *notes]:
        console.print(note, markup=False, highlight=False)


def _cells(row: dict[str, Any]) -> list[str]:
    rate, latency, server = row["throughput"], row["latency_us"], row["server"]
    limited = "≥ " if row["client_limited"] else ""
    served = f"{row['connections_served']} of {row['connections']}"
    return [
        row["target"],
        _or_dash(rate["median"], lambda value: f"{limited}{_rate(value)}"),
        _or_dash(rate["min"], lambda value: f"{_rate(value)} - {_rate(rate['max'])}"),
        *(_or_dash(latency[key], _milliseconds) for key in ("p50", "p99", "max")),
        f"[bold red]{served}[/]" if row["starved"] else served,
        ", ".join(f"{kind} {count}" for kind, count in row["errors"].items()) or "0",
        _or_dash(server["cpu_us_per_message"], lambda value: f"{value:.1f}"),
        _or_dash(server["peak_rss_bytes"], lambda value: _memory(value, server["pss_bytes"])),
        _or_dash(row["client"]["cpu_percent"], lambda value: f"{value:.0f} %"),
    ]


def _explain(rows: list[dict[str, Any]]) -> list[str]:
    notes = []
    if any(row["client_limited"] for row in rows):
        notes.append(
            "≥: the client was at its limit, and the server (where it could be watched) was not: "
            "it can do more than this. Compare such servers by CPU per message."
        )
    for row in rows:
        if row["verified"] and row["starved"]:
            notes.append(
                f"{row['target']}: {row['starved']} of {row['connections']} connections never got "
                "a reply; its rate and latency are those of the connections that did."
            )
        if not row["verified"]:
            notes.append(f"{row['target']}: nothing was verified; this is a failure, not a result.")
    return notes


def _or_dash(value: Any, form: Any) -> str:
    return "-" if value is None else str(form(value))


def _rate(value: float) -> str:
    thousand = 1000
    return f"{value / thousand:.1f}k" if value >= thousand else f"{value:.0f}"


def _milliseconds(microseconds: int) -> str:
    value = microseconds / 1000
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004 - three digits


def _memory(rss: int, pss: int | None) -> str:
    shared_once = "" if pss is None else f" ({pss / 2**20:.0f})"
    return f"{rss / 2**20:.0f}{shared_once}"
