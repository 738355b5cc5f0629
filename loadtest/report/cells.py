"""What stands in the cells of every table, and under it."""

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

RANKED = (
    ("target", ""),
    ("rank", "by CPU"),
    ("server CPU per message", "times the reference"),
    ("rank", "by rate"),
    ("messages/s", "times the reference"),
    ("rounds", ""),
)

NONE = "\N{EN DASH}"
"""What stands where there is no value."""

SERVED = 6  # the columns that can be bad news

ERRORS = 7


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


def ranked(results: list[Row], comparison: Comparison) -> list[list[str]]:
    """Return the rows of a comparison, the best first, one cell for each of `RANKED`."""
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
    """Return a rank; a dash where there is none."""
    return NONE if number is None else f"{number}."


def _place_by_rate(row: Row, number: int | None) -> str:
    """Return a rank by rate, which only a server that serves every client can have."""
    if row["starved"]:
        return NONE
    return "(≥)" if row["client_limited"] else place(number)


def bound(one: str, two: str | None, limited: set[str]) -> str:
    """Return how to read a ratio where the client limited a side, which can do more than that."""
    signs = {(True, True): "? ", (True, False): "≥ ", (False, True): "≤ "}
    return "" if one == two else signs.get((one in limited, two in limited), "")


def ratio(value: RatioRow | None, sign: str = "") -> str:
    """Return a ratio with its interval, and how to read it; a dash where it is not known."""
    if value is None:
        return NONE
    return f"{sign}{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def remarks(found: Document) -> list[str]:
    """Return what a reader must know to read the tables."""
    rows, said = found["results"], []
    if any(row["client_limited"] for row in rows):
        said.append(
            "≥: the client was at its limit, and the server (where it could be watched) was not: "
            "it can do more than this. Compare such servers by CPU per message, within this run."
        )
        said += _whom_the_client_limited(rows)
    for row in rows:
        said += [f"{label(row)}: {remark}" for remark in row.get("remarks", ())]
        if row["verified"] and row["starved"]:
            said.append(
                f"{label(row)}: {row['starved']} of {row['connections']} connections never got "
                "a reply; its rate and latency are those of the connections that did"
                f"{', and it has no rank by rate' if found['comparison'] else ''}."
            )
        if (late := row["dropped"] - row.get("unsent", 0)) > 0:
            said.append(
                f"{label(row)}: {late} messages that were due were never sent (dropped): "
                "the server, or this client, could not keep up with the rate."
            )
        said += _on_connections(row)
        if row["raw_latency_us"]["p99"] is not None:
            raw, lag = row["raw_latency_us"], row["lag_us"]
            said.append(
                f"{label(row)}: latency counts from when a message was due; from when it was sent, "
                f"p50 {milliseconds(raw['p50'])} ms, p99 {milliseconds(raw['p99'])} ms, max "
                f"{milliseconds(raw['max'])} ms. The client itself was late by "
                f"{milliseconds(lag['p50'])} ms (p50), {milliseconds(lag['p99'])} ms (p99)."
            )
        if not row["verified"]:
            said.append(f"{label(row)}: nothing was verified; this is a failure, not a result.")
    if shaky := [label(row) for row in rows if row["unstable"]]:
        said.append(
            f"Unstable: {', '.join(shaky)}: the standard deviation of the rounds is above 10 %, or "
            "one is 50 % off. Try more rounds, longer ones, or a quieter machine (echoload doctor)."
        )
    for comparison in found["comparison"]:
        said += _on_ranks(comparison)
    return list(dict.fromkeys([*said, *found["notes"]]))


def _on_connections(row: Row) -> list[str]:
    """Return what became of connections that did not last."""
    said = []
    made = row.get("connections_made")
    if made is not None and made < row["connections"]:
        said.append(f"{label(row)}: only {made} of {row['connections']} connections were made.")
    if unsent := row.get("unsent"):
        said.append(
            f"{label(row)}: {unsent} messages that were due were never sent (dropped): they "
            "had no connection (any more); --reconnect makes lost ones again."
        )
    if ended := row.get("ended_idle"):
        said.append(
            f"{label(row)}: the server ended {ended} connections while it owed nothing on them, as "
            "one that drains does; that is not an error."
        )
    if count := row.get("reconnects"):
        took = row["recovery_us"]
        said.append(
            f"{label(row)}: {count} connections were lost and made again; until each was served "
            f"again, it took p50 {milliseconds(took['p50'])} ms, p99 {milliseconds(took['p99'])} "
            f"ms, max {milliseconds(took['max'])} ms."
        )
    return said


def _whom_the_client_limited(rows: list[Row]) -> list[str]:
    limited: dict[str, list[str]] = {}
    for row in rows:
        if row["client_limited"] and (because := row["client_limited_because"]):
            limited.setdefault(because, []).append(label(row))
    return [
        f"{', '.join(names)}: the client was the limit because {because}."
        for because, names in limited.items()
    ]


def _on_ranks(comparison: Comparison) -> list[str]:
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
    said = [ranks]
    if alike:
        said.append(f"Not told apart by CPU per message: {', '.join(alike)}.")
    return said


def or_dash(value: _Value | None, form: Callable[[_Value], object]) -> str:
    """Return a value in its form; a dash where it is not known."""
    return NONE if value is None else str(form(value))


def rate(value: float) -> str:
    """Return messages a second."""
    thousand = 1000
    return f"{value / thousand:.1f}k" if value >= thousand else f"{value:.0f}"


def milliseconds(microseconds: float | None) -> str:
    """Return milliseconds, with three digits."""
    if microseconds is None:
        return NONE
    value = microseconds / 1000
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004 - three digits


def _memory(rss: int, pss: int | None) -> str:
    shared_once = "" if pss is None else f" ({pss / 2**20:.0f})"
    return f"{rss / 2**20:.0f}{shared_once}"
