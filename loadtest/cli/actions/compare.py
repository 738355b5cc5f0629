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
from loadtest.cli.actions.measurement import Measurement, take_output_files
from loadtest.cli.actions.progress import RoundProgress
from loadtest.cli.types import positive
from loadtest.errors import usage
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
    port: int | None,
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
    """Compare servers: a fresh one for every target and round.

    Two dozen options make this long: they are checked in one place, before anything is started.
    """
    files = take_output_files(options)
    if port is not None and not words:
        usage("--port is for the command after --; a server that runs is HOST:PORT")
    positive(options["duration"], "-d")
    settings = selection.server_settings(
        (*server_options, *([f"workers={workers}"] if workers else []))
    )
    settings |= {"handler": options["handler"], "handler_option": handler_options}
    cpus = make_pinning(pin, processes)
    notes: list[str] = []
    with BuildDirectory() as folder:
        own_options = frozenset({"workers"} if workers else ())
        target_selection = selection.TargetSelection(settings, folder, notes, own_options)
        all_targets = target_selection.targets(
            backends, targets, words, port=port, peers=peers, pythons=pythons
        )
        reference_name = choose_reference(reference, all_targets)
        cells = make_cells(all_targets, options, sweep)
        rounds = rounds or max(5, least_rounds(len(all_targets)))
        plan = Plan(cells, rounds, cpus, options["seed"], make_engine(engine, processes, cpus))
        plan_options = as_plan(cells[0].workload, plan.engine, rounds=rounds)
        plan_options |= {"sweep": sweep, "pin": pin}
        measurement = Measurement(
            rounds * len(cells),
            options["duration"] + options["warmup"],
            cpus,
            plan_options,
            files,
            quiet=quiet,
            reference=reference_name,
            objectives=slo or (),
            baseline=read_baseline(baseline, all_targets, plan_options),
            most_regression=max_regression,
            notes=notes,
        )

        def go(progress: RoundProgress) -> None:
            nonlocal plan
            allow_descriptors(max(cell.workload.connections for cell in plan.cells))
            plan, failures = try_each(plan, progress.say)
            measurement.leave_out(failures)
            if not plan.cells:
                return
            if reference_name not in {cell.target.name for cell in plan.cells}:
                measurement.reference = choose_reference(None, [cell.target for cell in plan.cells])
            plan = engine_for_all(plan, progress, measurement.notes)
            measurement.plan["engine"] = plan.engine.name
            try:
                measurement.leave_out(run_rounds(plan, measurement.results, progress))
            finally:
                complete_rounds = [
                    sum(not one.interrupted for one in result.rounds)
                    for result in measurement.results
                    if not result.stop_reason
                ]
                measurement.notes.append(
                    describe_plan(plan, options["duration"], min(complete_rounds, default=0))
                )

        return measurement.carry_out(go)
