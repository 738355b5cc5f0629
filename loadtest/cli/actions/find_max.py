"""What `echoload find-max` does: search the highest rate at which objectives hold."""

import sys
from dataclasses import asdict, replace
from typing import Any, TextIO

from clients.workload import Workload
from loadtest.cli.actions.arguments import (
    make_engine,
    make_pinning,
    one_server,
)
from loadtest.cli.actions.measurement import (
    EXIT_BAD_REPLY,
    EXIT_COULD_NOT_RUN,
    EXIT_INCONCLUSIVE,
    EXIT_OBJECTIVE_MISSED,
)
from loadtest.cli.types import positive
from loadtest.errors import LoadError
from loadtest.experiments.find_max import SearchResult, Step, make_rate_test
from loadtest.experiments.find_max import find_max as search_rate
from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
from loadtest.load.round import Engine
from loadtest.machine import environment
from loadtest.machine.pinning import Pinning
from loadtest.machine.usage import WatchedProcesses
from loadtest.output import EXIT_CLOSED_OUTPUT, complain, refuse_unwritable, save_and_show
from loadtest.report.cells import milliseconds
from loadtest.results.document import SCHEMA
from loadtest.results.objectives import Objective


def find_max(
    *,
    address: str,
    slo: tuple[Objective, ...],
    precision: float,
    engine: str,
    processes: int,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Find the highest rate at which objectives hold."""
    if json_file is not None:
        refuse_unwritable(json_file, "--json")
    positive(options["duration"], "-d")
    workload, label = one_server(address, options)
    cpus = make_pinning("off", processes)
    chosen_engine = make_engine("epoll" if engine == "auto" else engine, processes, cpus)
    return _carry_out(
        replace(workload, think=None),
        slo,
        precision,
        cpus,
        chosen_engine,
        label,
        json_file,
        quiet=quiet,
    )


def _carry_out(
    workload: Workload,
    objectives: tuple[Objective, ...],
    precision: float,
    pinning: Pinning,
    engine: Engine,
    label: str,
    json_file: str | None,
    *,
    quiet: bool,
) -> int:
    """Search, show each step, and return the exit code."""
    treat_all_as_ctrl_c()
    steps: list[Step] = []

    def say(step: Step) -> None:
        steps.append(step)
        if not quiet:
            complain(_step_line(step))

    try_rate = make_rate_test(workload, pinning, engine, label)
    failure, interrupted = "", False
    try:
        search_result = search_rate(workload, objectives, try_rate, say, precision)
    except KeyboardInterrupt:
        interrupted = True
    except (LoadError, OSError) as error:
        failure = str(error)
    if is_partial := interrupted or bool(failure):
        rates = [step.rate for step in steps if step.holds]
        search_result = SearchResult(
            max(rates, default=None), client_limited=False, steps=tuple(steps)
        )
    objectives_text = ", ".join(objective.text for objective in objectives)
    value = {
        "schema": SCHEMA,
        "environment": environment.describe((sorted(pinning.server), sorted(pinning.client))),
        "find_max": {
            "target": label,
            "objectives": objectives_text,
            **_as_json(search_result),
            "interrupted": interrupted,
        },
    }
    sentences, code = _summary(search_result, label, objectives_text, is_partial=is_partial)

    def print_summary(stream: TextIO) -> None:
        is_bad_reply = code == EXIT_BAD_REPLY
        print(*sentences, sep="\n", file=sys.stderr if is_bad_reply else stream)

    if steps:
        problem, closed = save_and_show(json_file, value, print_summary)
        failure = failure or problem
        code = code or (EXIT_CLOSED_OUTPUT if closed else 0)
    if failure:
        complain(f"echoload: {failure}")
    if interrupted:
        complain("interrupted: only the steps so far were counted")
        return EXIT_INTERRUPTED
    return EXIT_COULD_NOT_RUN if failure else code


def _as_json(found: SearchResult) -> dict[str, object]:
    return {
        "rate": found.rate,
        "client_limited": found.client_limited,
        "inconclusive": found.inconclusive,
        "ended_early": found.ended_early or None,
        "retries": sum(len(step.spoiled) for step in found.steps),
        "steps": [asdict(step) for step in found.steps],
    }


def _step_line(step: Step) -> str:
    latency = step.row["latency_us"]
    return (
        f"{step.rate:>12,.0f}/s  p50 {milliseconds(latency['p50'])} ms  "
        f"p99 {milliseconds(latency['p99'])} ms  "
        + ("holds" if step.holds else f"does not hold: {step.because}")
        + (" (the client was the limit)" if step.client_limited else "")
        + _retry_note(step.spoiled)
    )


def _retry_note(spoiled: tuple[str, ...]) -> str:
    """Return the note on a step that was tried again; empty: it was not."""
    if not spoiled:
        return ""
    times = "once" if len(spoiled) == 1 else f"{len(spoiled)} times"
    return f"; tried again {times}, because {'; then '.join(dict.fromkeys(spoiled))}"


def _summary(
    search_result: SearchResult, label: str, objectives_text: str, *, is_partial: bool
) -> tuple[list[str], int]:
    """Return the summary of a search, and the exit code of a complete one."""
    if not any(step.row["verified"] for step in search_result.steps) and not is_partial:
        return [f"{label}: nothing was verified; this is a failure, not a result"], EXIT_BAD_REPLY
    if search_result.ended_early:
        return [f"{label}: {search_result.ended_early}"], EXIT_BAD_REPLY
    if search_result.rate is None:
        if is_partial:
            return [f"{label}: no rate was found to meet {objectives_text} yet"], EXIT_INCONCLUSIVE
        code = EXIT_INCONCLUSIVE if search_result.inconclusive else EXIT_OBJECTIVE_MISSED
        return [f"{label}: not even the lowest rate meets {objectives_text}"], code
    sign = "≥ " if search_result.inconclusive or is_partial else ""
    sentences = []
    if watched := search_result.steps[-1].row["server"]["watched"]:
        sentences.append(f"watched: {WatchedProcesses(**watched)}, by the listening socket")
    sentences += [f"{label}: {sign}{search_result.rate:,.0f} messages/s with {objectives_text}"]
    if is_partial:
        sentences.append("≥: the search did not come to its end")
    elif search_result.client_limited:
        sentences.append(
            "≥: beyond it, the client was the limit; try --engine epoll, or more --processes"
        )
    elif search_result.inconclusive:
        sentences.append("≥: beyond it, other programs took the CPU; try where nothing else runs")
    return sentences, EXIT_INCONCLUSIVE if search_result.inconclusive else 0
