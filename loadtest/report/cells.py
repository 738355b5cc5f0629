"""The cells of every table, and the remarks under it."""

from collections.abc import Callable
from typing import TypeVar

from loadtest.results.document import label
from loadtest.results.schema import Comparison, Document, RatioRow, Row, Spread

_Value = TypeVar("_Value")

HEADINGS = (
    ("target", ""),
    ("messages/s", "median"),
    ("messages/s", "95 %"),
    ("latency ms", "p50"),
    ("latency ms", "p99"),
    ("latency ms", "max"),
    ("connections", "served"),
    ("errors", ""),
    ("server CPU", "µs/message"),
    ("server MiB", "RSS (PSS)"),
    ("client", "CPU"),
)

RANKING_HEADINGS = (
    ("target", ""),
    ("rank", "by CPU"),
    ("server CPU per message", "times the reference"),
    ("rank", "by rate"),
    ("messages/s", "times the reference"),
    ("rounds", ""),
)

NONE = "\N{EN DASH}"
"""The cell of a value that is not known."""

SERVED_COLUMN = 6  # the columns that can show a failure

ERRORS_COLUMN = 7


def cells(row: Row) -> list[str]:
    """Return a row's cells, one for each of `HEADINGS`."""
    speed, latency, server = row["throughput"], row["latency_us"], row["server"]
    limited = "≥ " if row["client_limited"] else ""
    return [
        label(row),
        or_dash(speed["median"], lambda value: limited + rate(value)),
        _range(speed),
        *(or_dash(latency[key], milliseconds) for key in ("p50", "p99", "max")),
        f"{row['connections_served']} of {row['connections']}",
        ", ".join(f"{kind} {count}" for kind, count in row["errors"].items()) or "0",
        or_dash(server["cpu_us_per_message"], lambda value: f"{value:.1f}"),
        or_dash(server["peak_rss_bytes"], lambda value: _memory(value, server["pss_bytes"])),
        or_dash(row["client"]["cpu_percent"], lambda value: f"{value:.0f} %"),
    ]


def _range(speed: Spread) -> str:
    low, high = speed["low"], speed["high"]
    if len(speed["rounds"]) < 2 or low is None or high is None:  # noqa: PLR2004 - one has no spread
        return NONE
    return f"{rate(low)} - {rate(high)}"


def ranking_cells(results: list[Row], comparison: Comparison) -> list[list[str]]:
    """Return the rows of a comparison, the best first, one cell for each of `RANKING_HEADINGS`."""
    cpu, speed = (comparison["figures"][name] for name in ("cpu_us_per_message", "throughput"))
    rows = {row["target"]: row for row in results if row["sweep"] == comparison["sweep"]}

    def order(name: str) -> tuple[float, float]:
        figure = rows[name]["server"]["cpu_us_per_message"]
        return (figure is None, figure or -(rows[name]["throughput"]["median"] or 0.0))

    limited = {name for name, row in rows.items() if row["client_limited"]}
    return [
        [
            name,
            place(cpu["ranks"].get(name)),
            ratio(cpu["ratios"].get(name)),
            _place_by_rate(rows[name], speed["ranks"].get(name)),
            ratio(speed["ratios"].get(name), bound(name, comparison["reference"], limited)),
            "unstable" if rows[name]["unstable"] else "",
        ]
        for name in sorted(rows, key=order)
    ]


def place(number: int | None) -> str:
    """Return a rank; a dash if there is none."""
    return NONE if number is None else f"{number}."


def _place_by_rate(row: Row, number: int | None) -> str:
    """Return a rank by rate, which only a server that serves every client can have."""
    if row["starved"]:
        return NONE
    return "(≥)" if row["client_limited"] else place(number)


def bound(one: str, two: str | None, limited: set[str]) -> str:
    """Return the sign of a ratio in which the client limited a side, which can do more."""
    signs = {(True, True): "? ", (True, False): "≥ ", (False, True): "≤ "}
    return "" if one == two else signs.get((one in limited, two in limited), "")


def ratio(value: RatioRow | None, sign: str = "") -> str:
    """Return a ratio with its sign and its interval; a dash if it is not known."""
    if value is None:
        return NONE
    return f"{sign}{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def remarks(document: Document) -> list[str]:
    """Return the sentences that a reader of the tables must know."""
    rows, sentences = document["results"], []
    if any(row["client_limited"] for row in rows):
        sentences.append(
            "≥: the client was at its limit, and the server (where it could be watched) was not: "
            "it can do more than this. Compare such servers by CPU per message, within this run."
        )
        sentences += _client_limit_remarks(rows)
    for row in rows:
        sentences += [f"{label(row)}: {remark}" for remark in row.get("remarks", ())]
        if row["verified"] and row["starved"]:
            sentences.append(
                f"{label(row)}: {row['starved']} of {row['connections']} connections never got "
                "a reply; its rate and latency are those of the connections that did"
                f"{', and it has no rank by rate' if document['comparison'] else ''}."
            )
        if (overdue := row["dropped"] - row.get("unsent", 0)) > 0:
            sentences.append(
                f"{label(row)}: {overdue} messages that were due were never sent (dropped): "
                "the server, or this client, could not keep up with the rate."
            )
        sentences += _connection_remarks(row)
        if row["raw_latency_us"]["p99"] is not None:
            raw, lag = row["raw_latency_us"], row["lag_us"]
            sentences.append(
                f"{label(row)}: latency counts from when a message was due; from when it was sent, "
                f"p50 {milliseconds(raw['p50'])} ms, p99 {milliseconds(raw['p99'])} ms, max "
                f"{milliseconds(raw['max'])} ms. The client itself was late by "
                f"{milliseconds(lag['p50'])} ms (p50), {milliseconds(lag['p99'])} ms (p99)."
            )
        if not row["verified"]:
            sentences.append(
                f"{label(row)}: nothing was verified; this is a failure, not a result."
            )
    if unstable := [label(row) for row in rows if row["unstable"]]:
        sentences.append(
            f"Unstable: {', '.join(unstable)}: the standard deviation of the rounds is above 10 %, "
            "or one is 50 % off. Try more rounds, longer ones, or a quieter machine (echoload "
            "doctor)."
        )
    for comparison in document["comparison"]:
        sentences += _rank_remarks(comparison)
    return list(dict.fromkeys([*sentences, *document["notes"]]))


def _connection_remarks(row: Row) -> list[str]:
    """Return sentences about the connections of a row that did not last."""
    sentences = []
    connections_made = row.get("connections_made")
    if connections_made is not None and connections_made < row["connections"]:
        sentences.append(
            f"{label(row)}: only {connections_made} of {row['connections']} connections were made."
        )
    if unsent := row.get("unsent"):
        sentences.append(
            f"{label(row)}: {unsent} messages that were due were never sent (dropped): they "
            "had no connection (any more); --reconnect makes lost ones again."
        )
    if ended_idle := row.get("ended_idle"):
        sentences.append(
            f"{label(row)}: the server ended {ended_idle} connections while it owed nothing on "
            "them, as one that drains does; that is not an error."
        )
    if count := row.get("reconnects"):
        delay = row["recovery_us"]
        sentences.append(
            f"{label(row)}: {count} connections were lost and made again; until each was served "
            f"again, it took p50 {milliseconds(delay['p50'])} ms, p99 {milliseconds(delay['p99'])} "
            f"ms, max {milliseconds(delay['max'])} ms."
        )
    return sentences


def _client_limit_remarks(rows: list[Row]) -> list[str]:
    targets: dict[str, list[str]] = {}
    for row in rows:
        if row["client_limited"] and (reason := row["client_limited_because"]):
            targets.setdefault(reason, []).append(label(row))
    return [
        f"{', '.join(names)}: the client was the limit because {reason}."
        for reason, names in targets.items()
    ]


def _rank_remarks(comparison: Comparison) -> list[str]:
    least, rounds = comparison["least_rounds"], comparison["rounds"]
    if rounds < least:
        sentence = (
            f"No ranking: {rounds} rounds cannot show any difference between so many targets; it "
            f"takes {least} (Mann-Whitney, Holm over all pairs, 5 %): --rounds {least}."
        )
        return [sentence]
    if not any(figure["ranks"] for figure in comparison["figures"].values()):
        return ["No ranking: of fewer than two targets there is a figure that can be ranked."]
    alike = [
        f"{pair['one']} and {pair['two']}"
        for pair in comparison["figures"]["cpu_us_per_message"]["pairs"]
        if not pair["different"]
    ]
    ranks = (
        "Ranks: after as many as are better with 95 % confidence in all of them at once "
        f"(Mann-Whitney, Holm over all pairs; {rounds} rounds, at least {least} needed)."
    )
    sentences = [ranks]
    if alike:
        sentences.append(f"Not told apart by CPU per message: {', '.join(alike)}.")
    return sentences


def or_dash(value: _Value | None, form: Callable[[_Value], object]) -> str:
    """Return a formatted value; a dash if it is not known."""
    return NONE if value is None else str(form(value))


def rate(value: float) -> str:
    """Return a rate in messages per second."""
    thousand = 1000
    return f"{value / thousand:.1f}k" if value >= thousand else f"{value:.0f}"


def milliseconds(microseconds: float | None) -> str:
    """Return a time in milliseconds, with three digits."""
    if microseconds is None:
        return NONE
    value = microseconds / 1000
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004 - three digits


def _memory(rss: int, pss: int | None) -> str:
    shared_once = "" if pss is None else f" ({pss / 2**20:.0f})"
    return f"{rss / 2**20:.0f}{shared_once}"
