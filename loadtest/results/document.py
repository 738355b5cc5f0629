"""What a measurement gave, as one value that every output is made from.

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
    """Return everything that a measurement gave.

    Args:
        results: What was measured.
        environment: Where and with what.
        plan: What was asked for.
        notes: What a reader must know.
        reference: The target that others are compared with; None: nobody.
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
    together: dict[str, list[Result]] = {}
    for result in results:
        together.setdefault(json.dumps(result.sweep), []).append(result)
    return [
        _comparison(group, reference)
        for group in together.values()
        if len({result.target for result in group}) > 1
    ]


def _comparison(results: list[Result], reference: str | None) -> Comparison:
    # One that failed would keep the others from being told apart by the rounds that they have.
    whole = [result for result in results if not result.failed]
    rounds = min((len(result.rounds) for result in whole), default=0)
    base = next((result for result in results if result.target == reference), None)
    found: Comparison = {
        "sweep": results[0].sweep,
        "reference": reference,
        "rounds": rounds,
        "least_rounds": least_rounds(len(results)),
        "figures": {},
    }
    for figure in FIGURES:
        values = {
            result.target: result.figure(figure)
            for result in whole
            if result.figure(figure) and _can_be_ranked(result, figure)
        }
        enough = rounds >= found["least_rounds"] and len(values) > 1
        ranking = rank(values, lowest_first=figure == "cpu_us_per_message") if enough else None
        found["figures"][figure] = {
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
                if base and (pairs := _paired(result, base, figure))
            },
        }
    return found


def _as_row(one: Ratio) -> RatioRow:
    return {"median": one.median, "low": one.low, "high": one.high, "rounds": one.rounds}


def _can_be_ranked(result: Result, figure: str) -> bool:
    """Tell whether a figure is one that others can be held against.

    Where the client was the limit, the rate is the client's; where connections got no reply, it is
    that of the others, who had the server to themselves. What ended early is not a measurement.
    """
    if result.ended_early:
        return False
    return figure != "throughput" or not (result.client_limited or result.starves)


def _paired(one: Result, two: Result, figure: str) -> tuple[list[float], list[float]] | None:
    """Return the rounds that both have, in pairs; None where the figure is not known."""
    if one.ended_early or two.ended_early:
        return None
    pairs = list(zip(one.figure(figure), two.figure(figure), strict=False))
    return ([mine for mine, _ in pairs], [its for _, its in pairs]) if pairs else None


def ratios(results: list[Result]) -> dict[str, dict[str, dict[str, Ratio]]]:
    """Compare every backend with its peers: backend → peer → figure → ratio, round by round."""
    by_name = {result.target: result for result in results}
    found: dict[str, dict[str, dict[str, Ratio]]] = {}
    for result in results:
        for name in peers_of(result.backend or ""):
            if (peer := by_name.get(name)) is not None and peer.rounds:
                found.setdefault(result.target, {})[name] = {
                    figure: paired_ratio(*pairs)
                    for figure in FIGURES
                    if (pairs := _paired(result, peer, figure))
                }
    return found


def load(path: str) -> Document:
    """Return a document that was saved; ``-`` is standard input.

    Raises:
        OSError: It cannot be read.
        ValueError: It is none; the message is a sentence.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        found = json.loads(data)
    except ValueError:
        raise ValueError(f"{path} is not a JSON file") from None
    if not _is_document(found):
        raise ValueError(f"{path} is not a result of echoload run or compare (schema {SCHEMA})")
    return found


def _is_document(found: object) -> TypeGuard[Document]:
    """Tell whether `found` has the shape of what `document` returns."""
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return False
    rows = found.get("results")
    if not rows or not isinstance(rows, list) or not found.keys() >= Document.__required_keys__:
        return False
    return all(isinstance(row, dict) and row.keys() >= Row.__required_keys__ for row in rows)


def as_text(found: Document) -> str:
    """Return a document as it is saved."""
    return json.dumps(found, indent=2) + "\n"


def beside(found: list[Document], names: tuple[str, ...]) -> Document:
    """Return several runs as one document, each target called by its run, too.

    What was compared within each run stays; runs are not compared with each other, because
    something else than the target may have changed.
    """
    if len(found) == 1:
        return found[0]
    stems = [Path(name).stem for name in names]
    labels = stems if len(set(stems)) == len(stems) else names
    together: Document = {**found[0], "results": [], "comparison": [], "ratios": {}, "notes": []}
    for one, name in zip(found, labels, strict=True):
        for row in one["results"]:
            together["results"].append({**row, "target": f"{row['target']} ({name})"})
    return together


def label(row: Row) -> str:
    """Return what a row is of: the target, what a sweep set, the other Python."""
    words = [row["target"]]
    if interpreter := row.get("interpreter"):
        words.append(
            f"(Python {interpreter['version']}, GIL {'on' if interpreter['gil'] else 'off'})"
        )
    words += [f"{name}={value}" for name, value in row["sweep"].items()]
    return " ".join(words)
