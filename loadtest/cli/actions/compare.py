"""What `echoload compare` does: measure servers under the same load, in interleaved rounds."""

from typing import Any

from loadtest.cli.actions.arguments import (
    as_plan,
    choose_reference,
    describe_plan,
    engine_for_all,
    make_cells,
    make_engine,
    make_pinning,
    read_baseline,
)
from loadtest.cli.actions.measurement import Measurement, chosen_files
from loadtest.cli.actions.progress import RoundProgress
from loadtest.cli.types import positive
from loadtest.experiments.compare import Plan, try_each
from loadtest.experiments.compare import compare as run_rounds
from loadtest.machine.descriptors import allow_descriptors
from loadtest.results.objectives import Objective
from loadtest.results.statistics import least_rounds
from loadtest.servers import selection
from loadtest.servers.targets import BuildDirectory


def compare(
    *,
    words: tuple[str, ...],
    backends: str | None,
    targets: tuple[str, ...],
    peers: bool,
    pythons: tuple[str, ...],
    workers: str | None,
    server_options: tuple[str, ...],
    handler_options: tuple[str, ...],
    rounds: int | None,
    reference: str | None,
    sweep: str | None,
    engine: str,
    processes: int,
    pin: str,
    slo: tuple[Objective, ...] | None,
    baseline: str | None,
    max_regression: float,
    quiet: bool,
    **options: Any,
) -> int:
    """Compare servers: a fresh one for every target and round."""
    files = chosen_files(options)
    positive(options["duration"], "-d")
    settings = selection.server_settings(
        (*server_options, *([f"workers={workers}"] if workers else []))
    )
    settings |= {"handler": options["handler"], "handler_option": handler_options}
    cpus = make_pinning(pin, processes)
    notes: list[str] = []
    with BuildDirectory() as folder:
        own = frozenset({"workers"} if workers else ())
        chosen = selection.TargetSelection(settings, folder, notes, own)
        what = chosen.targets(backends, targets, words, peers=peers, pythons=pythons)
        base = choose_reference(reference, what)
        cells = make_cells(what, options, sweep)
        rounds = rounds or max(5, least_rounds(len(what)))
        plan = Plan(cells, rounds, cpus, options["seed"], make_engine(engine, processes, cpus))
        asked = as_plan(cells[0].workload, plan.engine, rounds=rounds)
        asked |= {"sweep": sweep, "pin": pin}
        this = Measurement(
            rounds * len(cells),
            options["duration"] + options["warmup"],
            cpus,
            asked,
            files,
            quiet=quiet,
            reference=base,
            objectives=slo or (),
            baseline=read_baseline(baseline, what, asked),
            most_regression=max_regression,
            notes=notes,
        )

        def go(progress: RoundProgress) -> None:
            nonlocal plan
            allow_descriptors(max(cell.workload.connections for cell in plan.cells))
            plan, failures = try_each(plan, progress.say)
            this.leave_out(failures)
            if not plan.cells:
                return
            if base not in {cell.target.name for cell in plan.cells}:
                this.reference = choose_reference(None, [cell.target for cell in plan.cells])
            plan = engine_for_all(plan, progress, this.notes)
            this.plan["engine"] = plan.engine.name
            try:
                this.leave_out(run_rounds(plan, this.results, progress))
            finally:
                done = [
                    sum(not one.interrupted for one in result.rounds)
                    for result in this.results
                    if not result.failed
                ]
                this.notes.append(describe_plan(plan, options["duration"], min(done, default=0)))

        return this.carry_out(go)
