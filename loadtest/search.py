"""`echoload find-max`, as it speaks at the prompt."""

import json
import sys
from dataclasses import asdict

from clients.workload import Workload
from loadtest import environment
from loadtest.findmax import Step, find_max, trier
from loadtest.measure import Engine
from loadtest.outcome import EXIT_BROKEN, EXIT_COULD_NOT_RUN, EXIT_UNSURE, EXIT_WRONG
from loadtest.pinning import Pinning
from loadtest.report.cells import milliseconds
from loadtest.results import SCHEMA, write
from loadtest.thresholds import Objective
from loadtest.workers import LoadError


def carry_out(
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

    def say(step: Step) -> None:
        if not quiet:
            latency = step.row["latency_us"]
            print(
                f"{step.rate:>12,.0f}/s  p50 {milliseconds(latency['p50'])} ms  "
                f"p99 {milliseconds(latency['p99'])} ms  "
                + ("holds" if step.holds else f"does not hold: {step.because}")
                + (" (the client was the limit)" if step.client_limited else ""),
                file=sys.stderr,
                flush=True,
            )

    try:
        found = find_max(
            workload, objectives, trier(workload, pinning, engine, label), say, precision
        )
    except (LoadError, OSError) as error:
        print(f"echoload: {error}", file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    wanted = ", ".join(objective.text for objective in objectives)
    if json_file is not None:
        value = {
            "schema": SCHEMA,
            "environment": environment.describe((sorted(pinning.server), sorted(pinning.client))),
            "find_max": {
                "target": label,
                "objectives": wanted,
                "rate": found.rate,
                "client_limited": found.client_limited,
                "steps": [asdict(step) for step in found.steps],
            },
        }
        write(json_file, json.dumps(value, indent=2) + "\n")
    if not any(step.row["verified"] for step in found.steps):
        print(f"{label}: nothing was verified; this is a failure, not a result", file=sys.stderr)
        return EXIT_WRONG
    if found.rate is None:
        print(f"{label}: not even the lowest rate meets {wanted}")
        return EXIT_UNSURE if found.client_limited else EXIT_BROKEN
    sign = "≥ " if found.client_limited else ""
    print(f"{label}: {sign}{found.rate:,.0f} messages/s with {wanted}")
    if found.client_limited:
        print("≥: beyond it, the client was the limit; try --engine epoll, or more --processes")
        return EXIT_UNSURE
    return 0
