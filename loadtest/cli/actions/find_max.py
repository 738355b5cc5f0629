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
from loadtest.experiments.find_max import Found, Step, trier
from loadtest.experiments.find_max import find_max as search_rate
from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
from loadtest.load.round import Engine
from loadtest.machine import environment
from loadtest.machine.pinning import Pinning
from loadtest.machine.usage import Watched
from loadtest.output import EXIT_CLOSED_OUTPUT, complain, hand_over, refuse_unwritable
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
    chosen = make_engine("epoll" if engine == "auto" else engine, processes, cpus)
    return _carry_out(
        replace(workload, think=None),
        slo,
        precision,
        cpus,
        chosen,
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
            complain(_shown(step))

    try_rate = trier(workload, pinning, engine, label)
    failure, interrupted = "", False
    try:
        found = search_rate(workload, objectives, try_rate, say, precision)
    except KeyboardInterrupt:
        interrupted = True
    except (LoadError, OSError) as error:
        failure = str(error)
    if partial := interrupted or bool(failure):
        held = [step.rate for step in steps if step.holds]
        found = Found(max(held, default=None), client_limited=False, steps=tuple(steps))
    wanted = ", ".join(objective.text for objective in objectives)
    value = {
        "schema": SCHEMA,
        "environment": environment.describe((sorted(pinning.server), sorted(pinning.client))),
        "find_max": {
            "target": label,
            "objectives": wanted,
            "rate": found.rate,
            "client_limited": found.client_limited,
            "inconclusive": found.unsure,
            "ended_early": found.ended_early or None,
            "retries": sum(len(step.spoiled) for step in found.steps),
            "steps": [asdict(step) for step in found.steps],
            "interrupted": interrupted,
        },
    }
    sentences, code = _said(found, label, wanted, partial=partial)

    def tell(stream: TextIO) -> None:
        wrong = code == EXIT_BAD_REPLY
        print(*sentences, sep="\n", file=sys.stderr if wrong else stream)

    if steps:
        trouble, closed = hand_over(json_file, value, tell)
        failure = failure or trouble
        code = code or (EXIT_CLOSED_OUTPUT if closed else 0)
    if failure:
        complain(f"echoload: {failure}")
    if interrupted:
        complain("interrupted: only the steps so far were counted")
        return EXIT_INTERRUPTED
    return EXIT_COULD_NOT_RUN if failure else code


def _shown(step: Step) -> str:
    latency = step.row["latency_us"]
    return (
        f"{step.rate:>12,.0f}/s  p50 {milliseconds(latency['p50'])} ms  "
        f"p99 {milliseconds(latency['p99'])} ms  "
        + ("holds" if step.holds else f"does not hold: {step.because}")
        + (" (the client was the limit)" if step.client_limited else "")
        + _after(step.spoiled)
    )


def _after(spoiled: tuple[str, ...]) -> str:
    """Return what to add to a step that was tried again."""
    if not spoiled:
        return ""
    times = "once" if len(spoiled) == 1 else f"{len(spoiled)} times"
    return f"; tried again {times}, because {'; then '.join(dict.fromkeys(spoiled))}"


def _said(found: Found, label: str, wanted: str, *, partial: bool) -> tuple[list[str], int]:
    """Return what there is to say of a search, and the exit code where it came to its end."""
    if not any(step.row["verified"] for step in found.steps) and not partial:
        return [f"{label}: nothing was verified; this is a failure, not a result"], EXIT_BAD_REPLY
    if found.ended_early:
        return [f"{label}: {found.ended_early}"], EXIT_BAD_REPLY
    if found.rate is None:
        if partial:
            return [f"{label}: no rate was found to meet {wanted} yet"], EXIT_INCONCLUSIVE
        code = EXIT_INCONCLUSIVE if found.unsure else EXIT_OBJECTIVE_MISSED
        return [f"{label}: not even the lowest rate meets {wanted}"], code
    sign = "≥ " if found.unsure or partial else ""
    said = []
    if watched := found.steps[-1].row["server"]["watched"]:
        said.append(f"watched: {Watched(**watched)}, by the listening socket")
    said += [f"{label}: {sign}{found.rate:,.0f} messages/s with {wanted}"]
    if partial:
        said.append("≥: the search did not come to its end")
    elif found.client_limited:
        said.append(
            "≥: beyond it, the client was the limit; try --engine epoll, or more --processes"
        )
    elif found.unsure:
        said.append("≥: beyond it, other programs took the CPU; try where nothing else runs")
    return said, EXIT_INCONCLUSIVE if found.unsure else 0
