"""A document as CSV (RFC 4180): a line for each round, for a spreadsheet or R."""

import csv
import io

from loadtest.machine.environment import ThisPython
from loadtest.results.schema import Document, OtherPython, Row

_COLUMNS = (
    "target",
    "backend",
    "handler",
    "python",
    "gil",
    "connections",
    "sweep",
    "round",
    "messages_per_second",
    "server_cpu_us_per_message",
    "client_limited",
    "connections_served",
    "starved",
    "verified_in_all_rounds",
    "dropped_in_all_rounds",
    "errors_in_all_rounds",
    "latency_p50_us_of_all_rounds",
    "latency_p90_us_of_all_rounds",
    "latency_p99_us_of_all_rounds",
    "latency_p999_us_of_all_rounds",
    "latency_max_us_of_all_rounds",
    "interrupted",
)


def as_csv(document: Document) -> str:
    """Return a document as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    own_interpreter = document["environment"]["interpreter"]
    for row in document["results"]:
        cpu = row["server"]["cpu"]["rounds"]
        for number, speed in enumerate(row["throughput"]["rounds"]):
            writer.writerow(
                {
                    **_facts(row, row["interpreter"] or own_interpreter),
                    "interrupted": document.get("interrupted", False),
                    "round": number + 1,
                    "messages_per_second": speed,
                    "server_cpu_us_per_message": cpu[number] if number < len(cpu) else "",
                }
            )
    return text.getvalue()


def _facts(row: Row, interpreter: ThisPython | OtherPython) -> dict[str, object]:
    return {
        "target": row["target"],
        "backend": row["backend"],
        "handler": row["handler"],
        "connections": row["connections"],
        "client_limited": row["client_limited"],
        "connections_served": row["connections_served"],
        "starved": row["starved"],
        "verified_in_all_rounds": row["verified"],
        "dropped_in_all_rounds": row["dropped"],
        "python": interpreter["version"],
        "gil": interpreter["gil"],
        "sweep": " ".join(f"{name}={value}" for name, value in row["sweep"].items()),
        "errors_in_all_rounds": " ".join(
            f"{kind}={count}" for kind, count in row["errors"].items()
        ),
        **{
            f"latency_{name}_us_of_all_rounds": row["latency_us"][name]
            for name in ("p50", "p90", "p99", "p999", "max")
        },
    }
