"""What `echoload hold` does: open idle connections, and show what each costs."""

from dataclasses import asdict
from pathlib import Path

from loadtest.cli.actions.measurement import EXIT_BAD_REPLY, EXIT_COULD_NOT_RUN
from loadtest.experiments.hold import hold_each
from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
from loadtest.machine import environment
from loadtest.output import EXIT_CLOSED_OUTPUT, complain, refuse_unwritable, save_and_show
from loadtest.report.text import show_hold_results
from loadtest.results.document import SCHEMA
from loadtest.results.held import HoldResult
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
    results: list[HoldResult] = []
    interrupted, is_closed = False, False
    target_selection = selection.TargetSelection({"handler": "echo", **settings}, Path(), [])
    treat_all_as_ctrl_c()
    failures: list[str] = []
    try:
        targets = target_selection.targets(backends, (), (), peers=False, pythons=())
        failures = hold_each(targets, connections, results, complain)
    except KeyboardInterrupt:
        interrupted = True
    if results:
        document = {
            "schema": SCHEMA,
            "environment": environment.describe(([], [])),
            "held": list(map(asdict, results)),
            "interrupted": interrupted,
        }
        problem, is_closed = save_and_show(
            json_file, document, lambda stream: show_hold_results(results, stream)
        )
        failures += [problem] if problem else []
    for sentence in failures:
        complain(f"echoload: {sentence}")
    if interrupted:
        complain("interrupted: only the servers so far were looked at")
        return EXIT_INTERRUPTED
    if failures:
        return EXIT_COULD_NOT_RUN
    if any(not one.held for one in results):
        return EXIT_BAD_REPLY
    return EXIT_CLOSED_OUTPUT if is_closed else 0
