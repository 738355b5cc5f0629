"""What `echoload hold` does: open idle connections, and show what each costs."""

from dataclasses import asdict
from pathlib import Path

from loadtest.cli.actions.measurement import EXIT_BAD_REPLY, EXIT_COULD_NOT_RUN
from loadtest.experiments.hold import hold_each
from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
from loadtest.machine import environment
from loadtest.output import EXIT_CLOSED_OUTPUT, complain, hand_over, refuse_unwritable
from loadtest.report.text import show_held
from loadtest.results.document import SCHEMA
from loadtest.results.held import Held
from loadtest.servers import selection


def hold(
    *, backends: str, connections: int, server_options: tuple[str, ...], json_file: str | None
) -> int:
    """Count how many idle connections servers hold, and the memory of each."""
    settings = {
        "max_connections": str(connections + 16),
        **selection.server_settings(server_options),
    }
    if json_file is not None:
        refuse_unwritable(json_file, "--json")
    found: list[Held] = []
    interrupted, closed = False, False
    chosen = selection.TargetSelection({"handler": "echo", **settings}, Path(), [])
    treat_all_as_ctrl_c()
    failures: list[str] = []
    try:
        targets = chosen.targets(backends, (), (), peers=False, pythons=())
        failures = hold_each(targets, connections, found, complain)
    except KeyboardInterrupt:
        interrupted = True
    if found:
        held = {
            "schema": SCHEMA,
            "environment": environment.describe(([], [])),
            "held": list(map(asdict, found)),
            "interrupted": interrupted,
        }
        trouble, closed = hand_over(json_file, held, lambda stream: show_held(found, stream))
        failures += [trouble] if trouble else []
    for sentence in failures:
        complain(f"echoload: {sentence}")
    if interrupted:
        complain("interrupted: only the servers so far were looked at")
        return EXIT_INTERRUPTED
    if failures:
        return EXIT_COULD_NOT_RUN
    if any(not one.held for one in found):
        return EXIT_BAD_REPLY
    return EXIT_CLOSED_OUTPUT if closed else 0
