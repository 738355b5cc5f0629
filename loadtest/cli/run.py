"""The command `echoload run`: one running server under load."""

from typing import Any

import click

from echoserver.command import Duration
from loadtest.cli.arguments import (
    as_plan,
    empty_result,
    engine_for_one,
    engine_without_threads,
    make_engine,
    make_objectives,
    make_pinning,
    one_server,
)
from loadtest.cli.measurement import Measurement, chosen_files
from loadtest.cli.options import (
    CLIENT,
    CONNECTIONS,
    HANDLER,
    OBJECTIVES,
    OUTPUT,
    RATE,
    WORKLOAD,
    options_of,
)
from loadtest.cli.progress import RoundProgress
from loadtest.cli.types import WholeNumber, positive
from loadtest.errors import NoThreadsError, usage
from loadtest.load.round import RoundInterrupt, measure


@click.command()
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

    def go(progress: RoundProgress) -> None:
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
