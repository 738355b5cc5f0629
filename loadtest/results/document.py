"""The document of a measurement: the one value from which every output is made.

A *document* is that value as JSON has it. Tables and pages are made from a document alone, so
they can be made again from a saved one.
"""

import json
import sys
from pathlib import Path
from typing import TypeGuard

from loadtest.machine.environment import Environment
from loadtest.peers import peers_of
from loadtest.results.result import FIGURES, Result
from loadtest.results.schema import (
    Comparison,
    Document,
    Plan,
    RatioRow,
    Row,
)
from loadtest.results.statistics import (
    Ratio,
    least_rounds,
    paired_ratio,
    rank,
)

SCHEMA = "echoload/2"


def document(
    results: list[Result],
    environment: Environment,
    plan: Plan,
    notes: list[str],
    reference: str | None = None,
) -> Document:
    """Return the document of a measurement.

    Args:
        results: One for each target under each workload.
        environment: The machine and software.
        plan: The options of the measurement.
        notes: Sentences that a reader must know.
        reference: The target that others are compared with; None: there is none.
    """
    return {
        "schema": SCHEMA,
        "environment": environment,
        "plan": plan,
        "results": [result.as_json() for result in results],
        "comparison": _comparisons(results, reference),
        "ratios": {
            backend: {
                peer: {figure: _as_row(ratio) for figure, ratio in figures.items()}
                for peer, figures in peers.items()
            }
            for backend, peers in ratios(results).items()
        },
        "notes": notes,
    }


def _comparisons(results: list[Result], reference: str | None) -> list[Comparison]:
    """Compare all targets under the same workload, for each workload of a sweep."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps(result.sweep), []).append(result)
    return [
        _comparison(group, reference)
        for group in groups.values()
        if len({result.target for result in group}) > 1
    ]


def _comparison(results: list[Result], reference: str | None) -> Comparison:
    # A failed target has fewer rounds, which must not limit the comparison of the others.
    complete = [result for result in results if not result.stop_reason]
    rounds = min((len(result.rounds) for result in complete), default=0)
    reference_result = next((result for result in results if result.target == reference), None)
    comparison: Comparison = {
        "sweep": results[0].sweep,
        "reference": reference,
        "rounds": rounds,
        "least_rounds": least_rounds(len(results)),
        "figures": {},
    }
    for figure in FIGURES:
        values = {
            result.target: result.figure(figure)
            for result in complete
            if result.figure(figure) and _can_be_ranked(result, figure)
        }
        is_enough = rounds >= comparison["least_rounds"] and len(values) > 1
        ranking = rank(values, lowest_first=figure == "cpu_us_per_message") if is_enough else None
        comparison["figures"][figure] = {
            "ranks": ranking.ranks if ranking else {},
            "pairs": [
                {"one": one, "two": two, "p": p, "different": ranking.different(one, two)}
                for (one, two), p in ranking.adjusted.items()
            ]
            if ranking
            else [],
            "ratios": {
                result.target: _as_row(paired_ratio(*pairs))
                for result in results
                if reference_result and (pairs := _pair_rounds(result, reference_result, figure))
            },
        }
    return comparison


def _as_row(one: Ratio) -> RatioRow:
    return {"median": one.median, "low": one.low, "high": one.high, "rounds": one.rounds}


def _can_be_ranked(result: Result, figure: str) -> bool:
    """Tell whether the figure of a result can be ranked.

    If the client was the limit, the rate is the client's. If connections got no reply, it is the
    rate of the others, which had the server to themselves. A round that ended early is not a
    measurement.
    """
    if result.ended_early:
        return False
    return figure != "throughput" or not (result.client_limited or result.starves)


def _pair_rounds(one: Result, two: Result, figure: str) -> tuple[list[float], list[float]] | None:
    """Return the rounds that both results have, in pairs; None if the figure is not known."""
    if one.ended_early or two.ended_early:
        return None
    pairs = list(zip(one.figure(figure), two.figure(figure), strict=False))
    return ([mine for mine, _ in pairs], [its for _, its in pairs]) if pairs else None


def ratios(results: list[Result]) -> dict[str, dict[str, dict[str, Ratio]]]:
    """Compare every backend with its peers: backend → peer → figure → ratio, round by round."""
    by_name = {result.target: result for result in results}
    table: dict[str, dict[str, dict[str, Ratio]]] = {}
    for result in results:
        for name in peers_of(result.backend or ""):
            if (peer := by_name.get(name)) is not None and peer.rounds:
                table.setdefault(result.target, {})[name] = {
                    figure: paired_ratio(*pairs)
                    for figure in FIGURES
                    if (pairs := _pair_rounds(result, peer, figure))
                }
    return table


def load(path: str) -> Document:
    """Return a saved document; ``-`` is standard input.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a document; the message is a sentence.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        value = json.loads(data)
    except ValueError:
        raise ValueError(f"{path} is not a JSON file") from None
    if not _is_document(value):
        raise ValueError(f"{path} is not a result of echoload run or compare (schema {SCHEMA})")
    return value


def _is_document(value: object) -> TypeGuard[Document]:
    """Tell whether `value` has the shape of what `document` returns."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        return False
    rows = value.get("results")
    if not rows or not isinstance(rows, list) or not value.keys() >= Document.__required_keys__:
        return False
    return all(isinstance(row, dict) and row.keys() >= Row.__required_keys__ for row in rows)


def as_text(document: Document) -> str:
    """Return the JSON text of a document."""
    return json.dumps(document, indent=2) + "\n"


def merge_runs(documents: list[Document], names: tuple[str, ...]) -> Document:
    """Merge several runs into one document, in which each target is named with its run.

    Runs are not compared with each other, because something other than the target may have
    changed.
    """
    if len(documents) == 1:
        return documents[0]
    stems = [Path(name).stem for name in names]
    labels = stems if len(set(stems)) == len(stems) else names
    merged: Document = {**documents[0], "results": [], "comparison": [], "ratios": {}, "notes": []}
    for document, name in zip(documents, labels, strict=True):
        for row in document["results"]:
            merged["results"].append({**row, "target": f"{row['target']} ({name})"})
    return merged


def label(row: Row) -> str:
    """Return the label of a row: its target, another Python, and the values of a sweep."""
    words = [row["target"]]
    if interpreter := row.get("interpreter"):
        words.append(
            f"(Python {interpreter['version']}, GIL {'on' if interpreter['gil'] else 'off'})"
        )
    words += [f"{name}={value}" for name, value in row["sweep"].items()]
    return " ".join(words)
