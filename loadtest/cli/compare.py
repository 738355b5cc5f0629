"""The command `echoload compare`: servers, each under the same load, in interleaved rounds."""

from typing import Any

import click

from loadtest.cli.arguments import (
    as_plan,
    choose_reference,
    describe_plan,
    engine_for_all,
    make_cells,
    make_engine,
    make_objectives,
    make_pinning,
    read_baseline,
    read_share,
    read_sweep,
)
from loadtest.cli.measurement import Measurement, chosen_files
from loadtest.cli.options import (
    CLIENT,
    CONNECTIONS,
    HANDLER,
    OBJECTIVES,
    OUTPUT,
    PIN,
    RATE,
    SERVER,
    WORKLOAD,
    options_of,
    timing,
)
from loadtest.cli.progress import RoundProgress
from loadtest.cli.types import ValidatedText, positive
from loadtest.experiments.compare import Plan, try_each
from loadtest.experiments.compare import compare as run_rounds
from loadtest.machine.descriptors import allow_descriptors
from loadtest.results.statistics import least_rounds
from loadtest.servers import selection
from loadtest.servers.targets import BuildDirectory


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND {host} {port}]")
@options_of(
    [
        click.option(
            "--backends",
            metavar="NAMES",
            help="Backends, separated by commas: names, or classes as path/to/file.py:Class.  "
            "[default: process,thread,pool,selector,coroutine,gevent,asyncio]",
        ),
        click.option(
            *("-t", "--target", "targets"),
            multiple=True,
            metavar="[LABEL=]SERVER",
            help="One more server: a backend with settings of its own (fast=thread,workers=2), "
            "HOST:PORT or unix:/PATH, a peer (c-epoll), or a command "
            "('student=python3 s.py {port}').",
        ),
        click.option(
            "--peers",
            is_flag=True,
            help="In the same rounds, the stock Python servers of each model, and the model in C.",
        ),
        click.option(
            "--python",
            "pythons",
            multiple=True,
            metavar="PATH",
            help="Run every backend under this Python as well; may be repeated.",
        ),
        click.option("--workers", metavar="N", help="Processes of every backend's server."),
    ],
    SERVER,
    CONNECTIONS,
    [
        *timing("1s", "250ms", asked="How long each round asks."),
        click.option(
            "--rounds",
            type=click.IntRange(1, 1000),
            metavar="N",
            help="How often each is measured.  [default: as often as a ranking of them needs]",
        ),
        click.option(
            "--reference",
            metavar="TARGET",
            help="Whom to compare all others with.  [default: thread, or the first]",
        ),
        click.option(
            "--sweep",
            type=ValidatedText(read_sweep),
            metavar="NAME=VALUES",
            help="Measure all for each value: connections=10,100,1000, or of size, pipeline, rate.",
        ),
    ],
    RATE,
    HANDLER,
    [
        click.option(
            "--handler-option",
            "handler_options",
            multiple=True,
            metavar="KEY=VALUE",
            help="An option of the handler; may be repeated.",
        ),
    ],
    WORKLOAD,
    CLIENT,
    PIN,
    OBJECTIVES,
    [
        click.option(
            "--baseline",
            metavar="FILE",
            help="A saved JSON; exit 3 where a target is worse by more than --max-regression.",
        ),
        click.option(
            "--max-regression",
            default="10%",
            show_default=True,
            type=ValidatedText(read_share),
            metavar="SHARE",
            help="How much worse than the baseline is allowed.",
        ),
    ],
    OUTPUT,
)
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
    slo: str | None,
    baseline: str | None,
    max_regression: str,
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
            objectives=make_objectives(slo),
            baseline=read_baseline(baseline, what, asked),
            most_regression=read_share(max_regression),
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
