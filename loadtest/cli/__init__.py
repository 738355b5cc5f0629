"""The command `echoload`."""

from typing import TYPE_CHECKING, Any

import click

from echoserver import __version__
from echoserver.command import Duration
from loadtest.cli.arguments import (
    as_plan,
    choose_reference,
    describe_plan,
    empty_result,
    engine_for_all,
    engine_for_one,
    engine_without_threads,
    make_cells,
    make_engine,
    make_objectives,
    make_pinning,
    one_server,
    read_baseline,
    read_share,
    read_sweep,
)
from loadtest.cli.check import check
from loadtest.cli.options import (
    CLIENT,
    CONNECTIONS,
    FORMATS,
    OBJECTIVES,
    OUTPUT,
    PIN,
    QUIET,
    RATE,
    WORKLOAD,
    ValidatedText,
    WholeNumber,
    options_of,
    positive,
    timing,
)
from loadtest.errors import usage

if TYPE_CHECKING:
    from loadtest.cli.progress import RoundProgress

HANDLER = [
    click.option(
        "--handler",
        default="echo",
        show_default=True,
        metavar="NAME",
        help="What the server answers: echo, upper, sleep, cpu, or a class as file.py:Class.",
    ),
]
SERVER = [
    click.option(
        "--server-option",
        "server_options",
        multiple=True,
        metavar="NAME=VALUE",
        help="A setting of every backend's server, for example pool-size=8; may be repeated.",
    ),
]


@click.group(name="echoload", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def command() -> None:
    """Put echo servers under load, and check every byte that comes back.

    Exit codes: 0 measured; 1 could not run; 2 usage; 3 an objective or the baseline was missed; 4 a
    reply was wrong, nothing was verified, or the server ended early; 5 it cannot be told, because
    the client was the limit or the rounds were too few; 130 Ctrl-C or SIGTERM, after the table and
    files so far; 141 measured and saved, but standard output was closed.
    """


@command.command()
@click.argument("address", metavar="HOST:PORT|unix:/PATH|@NAME")
@options_of(
    CONNECTIONS,
    [
        click.option(
            *("-d", "--duration"),
            type=Duration(),
            metavar="DURATION",
            help="How long.  [default: 5s]",
        ),
        click.option(
            *("-n", "--messages"),
            type=WholeNumber(1),
            metavar="MESSAGES",
            help="How many messages over all connections, instead of how long.",
        ),
        click.option(
            "--warmup",
            type=Duration(),
            default="0s",
            metavar="DURATION",
            help="Load without measuring, before the measurement.  [default: none]",
        ),
    ],
    RATE,
    HANDLER,
    WORKLOAD,
    CLIENT,
    OBJECTIVES,
    OUTPUT,
)
def run(
    *, address: str, engine: str, processes: int, slo: str | None, quiet: bool, **options: Any
) -> int:
    """Put one running server under load."""
    from loadtest.cli.measurement import Measurement, chosen_files
    from loadtest.errors import NoThreadsError
    from loadtest.load.round import RoundInterrupt, measure

    if options["duration"] is not None and options["messages"] is not None:
        usage("-d and -n contradict each other; give one of them")
    if options["messages"] is None:
        given = options["duration"]
        options["duration"] = positive(5.0 if given is None else given, "-d")
    files = chosen_files(options)
    workload, label = one_server(address, options)
    cpus = make_pinning("off", processes)
    chosen = make_engine(engine, processes, cpus)
    this = Measurement(
        1,
        workload.duration,
        cpus,
        as_plan(workload, chosen, rounds=1),
        files,
        quiet=quiet,
        objectives=make_objectives(slo),
    )
    result = empty_result(label, workload)
    this.results.append(result)

    def go(progress: "RoundProgress") -> None:
        nonlocal chosen
        if chosen.name == "auto":
            chosen, why = engine_for_one(chosen, workload, cpus)
            this.notes.append(why)
            this.plan["engine"] = chosen.name
        progress.begin(0, result.target)
        try:
            measured = measure(workload, cpus, None, progress.during, chosen)
        except RoundInterrupt as interrupt:
            result.rounds.append(interrupt.round)
            raise
        except NoThreadsError as error:
            if engine != "auto":
                raise
            chosen, this.notes[-1] = engine_without_threads(chosen, cpus, str(error))
            this.plan["engine"] = chosen.name
            go(progress)  # once more: it is not "auto" any longer
            return
        result.rounds.append(measured)
        progress.end(f"{result.rounds[0].throughput:,.0f} messages/s")
        if engine == "auto" and chosen.name == "threads" and result.rounds[0].limit:
            this.notes[-1] = "Engine: threads, which turned out to be the limit: --engine epoll."

    return this.carry_out(go)


@command.command(context_settings={"ignore_unknown_options": False})
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
    from loadtest.cli.measurement import Measurement, chosen_files
    from loadtest.experiments.compare import Plan, try_each
    from loadtest.experiments.compare import compare as run_rounds
    from loadtest.machine.descriptors import allow_descriptors
    from loadtest.results.statistics import least_rounds
    from loadtest.servers import selection
    from loadtest.servers.targets import BuildDirectory

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

        def go(progress: "RoundProgress") -> None:
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


@command.command("find-max")
@click.argument("address", metavar="HOST:PORT|unix:/PATH|@NAME")
@options_of(
    CONNECTIONS,
    [
        click.option(
            "--slo",
            type=ValidatedText(make_objectives),
            default="p99<20ms,errors=0",
            show_default=True,
            metavar="CONDITIONS",
            help="What must hold.",
        ),
        *timing("3s", "500ms", asked="How long each rate is tried."),
        click.option(
            "--precision",
            default="5%",
            show_default=True,
            type=ValidatedText(read_share),
            metavar="SHARE",
            help="How close to come.",
        ),
    ],
    HANDLER,
    WORKLOAD,
    CLIENT,
    [click.option("--json", "json_file", metavar="FILE", help="Save the steps as JSON.")],
    QUIET,
)
def find_max(
    *,
    address: str,
    slo: str,
    precision: str,
    engine: str,
    processes: int,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Find the highest rate at which objectives hold."""
    from dataclasses import replace

    from loadtest.cli import find_max as search_command
    from loadtest.output import refuse_unwritable

    if json_file is not None:
        refuse_unwritable(json_file, "--json")
    positive(options["duration"], "-d")
    workload, label = one_server(address, options)
    cpus = make_pinning("off", processes)
    chosen = make_engine("epoll" if engine == "auto" else engine, processes, cpus)
    return search_command.carry_out(
        replace(workload, think=None),
        make_objectives(slo),
        read_share(precision),
        cpus,
        chosen,
        label,
        json_file,
        quiet=quiet,
    )


@command.command(short_help="Count the idle connections that servers hold.")
@options_of(
    [
        click.option(
            "--backends",
            default="process,thread,selector,coroutine,gevent,asyncio",
            show_default=True,
            metavar="NAMES",
            help="What to look at, separated by commas: names, or classes as file.py:Class.",
        ),
        click.option(
            *("-c", "--connections"),
            type=WholeNumber(1, 1_000_000),
            default=1000,
            show_default=True,
            metavar="N",
            help="Idle connections to open.",
        ),
    ],
    SERVER,
    [click.option("--json", "json_file", metavar="FILE", help="Save the result as JSON.")],
)
def hold(
    *, backends: str, connections: int, server_options: tuple[str, ...], json_file: str | None
) -> int:
    """Count how many idle connections servers hold, and the memory of each."""
    from dataclasses import asdict
    from pathlib import Path

    from loadtest.cli.measurement import EXIT_BAD_REPLY, EXIT_COULD_NOT_RUN
    from loadtest.experiments.hold import hold_each
    from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
    from loadtest.machine import environment
    from loadtest.output import EXIT_CLOSED_OUTPUT, complain, hand_over, refuse_unwritable
    from loadtest.report.text import show_held
    from loadtest.results.document import SCHEMA
    from loadtest.results.held import Held
    from loadtest.servers import selection

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


@command.command(short_help="Show saved results again, in any format.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@options_of(FORMATS)
def report(*, files: tuple[str, ...], **options: Any) -> int:
    """Show saved results again, several runs side by side, in any format."""
    from loadtest.cli import measurement
    from loadtest.output import EXIT_CLOSED_OUTPUT, complain, write
    from loadtest.report.page import page
    from loadtest.results.document import beside, load

    try:
        found = [load(path) for path in files]
    except ValueError as error:
        usage(str(error))
    except OSError as error:
        raise click.ClickException(f"cannot read {error.filename}: {error.strerror}") from None
    together = beside(found, files)
    written = measurement.chosen_files({"json_file": None, **options})
    trouble = measurement.save(together, {k: v for k, v in written.items() if k != "html"})
    if (html := written.get("html")) is not None:
        try:
            write(html, page(found, files))
        except OSError as error:
            trouble.append(f"--html: cannot write {html}: {error.strerror}")
    problem = measurement.show_table(together, written)
    if problem is not None and not isinstance(problem, BrokenPipeError):
        trouble.append(f"cannot write the table: {problem.strerror}")
    for sentence in trouble:
        complain(f"echoload: {sentence}")
    if trouble:
        return measurement.EXIT_COULD_NOT_RUN
    return EXIT_CLOSED_OUTPUT if problem is not None else 0


command.add_command(check)


@command.command(short_help="Measure what the load client reaches here.")
@options_of(
    PIN,
    [
        click.option(
            "--rounds",
            type=click.IntRange(1, 100),
            default=3,
            show_default=True,
            metavar="N",
            help="How often each engine is measured.",
        )
    ],
)
def calibrate(*, pin: str, rounds: int) -> int:
    """Measure what this machine's load client can reach, and keep it to judge runs by."""
    from loadtest.errors import LoadError
    from loadtest.experiments import calibration
    from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
    from loadtest.load import capacity
    from loadtest.output import complain

    treat_all_as_ctrl_c()
    rates = calibration.Rates(rounds)
    interrupted = False
    try:
        calibration.calibrate(make_pinning(pin, 1), rates)
    except KeyboardInterrupt:
        interrupted = True
    except LoadError as error:
        raise click.ClickException(str(error)) from None
    found = rates.summary()
    path, failure = None, ""
    try:
        path = None if interrupted else capacity.keep(found)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        failure = f"cannot keep it: {where}{error.strerror}; set XDG_CACHE_HOME to a folder "
        failure += "that can be written to"
    for engine, one in found.items():
        share = f", {one.of_c:.0%} of a client in C that verifies nothing" if one.of_c else ""
        print(f"{engine}: {one.capacity:,.0f} messages/s for each process{share}")
    if found:
        print(f"against {rates.server}" + (f"; kept in {path}" if path else ""))
    if interrupted:
        complain(f"interrupted after {rates.whole} of {rounds} rounds: nothing was kept")
        return EXIT_INTERRUPTED
    if failure:
        raise click.ClickException(failure)
    return 0


@command.command(short_help="Say what on this machine skews the results.")
def doctor() -> int:
    """Say what on this machine skews the results, and what mends it."""
    from rich.markup import escape
    from rich.table import Table

    from loadtest.console import Screen
    from loadtest.load import capacity
    from loadtest.machine import doctor as examination

    findings = examination.examine({name: one.capacity for name, one in capacity.known().items()})
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for one in findings:
        mark = "[yellow]![/]" if one.problem else "[green]ok[/]"
        said = f"{one.problem}\n[bold]{escape(one.remedy)}[/]" if one.problem else ""
        table.add_row(mark, one.subject, escape(one.value), said)
    Screen(width=160).print(table)
    bad = sum(bool(one.problem) for one in findings)
    print("nothing here skews the results" if not bad else f"{bad} of {len(findings)} may")
    return 0
