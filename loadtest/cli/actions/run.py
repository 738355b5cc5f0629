"""What `echoload run` does: put one running server under load."""

from typing import Any

from loadtest.cli.actions.arguments import (
    as_plan,
    empty_result,
    engine_for_one,
    engine_without_threads,
    make_engine,
    make_pinning,
    one_server,
)
from loadtest.cli.actions.measurement import Measurement, take_output_files
from loadtest.cli.actions.progress import RoundProgress
from loadtest.cli.types import positive
from loadtest.errors import NoThreadsError, usage
from loadtest.load.round import RoundInterrupt, measure
from loadtest.results.objectives import Objective


def run(
    *,
    address: str,
    engine: str,
    processes: int,
    slo: tuple[Objective, ...] | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Put one running server under load."""
    if options["duration"] is not None and options["messages"] is not None:
        usage("-d and -n contradict each other; give one of them")
    if options["messages"] is None:
        duration = options["duration"]
        options["duration"] = positive(5.0 if duration is None else duration, "-d")
    files = take_output_files(options)
    workload, label = one_server(address, options)
    cpus = make_pinning("off", processes)
    chosen_engine = make_engine(engine, processes, cpus)
    measurement = Measurement(
        1,
        workload.duration,
        cpus,
        as_plan(workload, chosen_engine, rounds=1),
        files,
        quiet=quiet,
        objectives=slo or (),
    )
    result = empty_result(label, workload)
    measurement.results.append(result)

    def go(progress: RoundProgress) -> None:
        nonlocal chosen_engine
        if chosen_engine.name == "auto":
            chosen_engine, reason = engine_for_one(chosen_engine, workload, cpus)
            measurement.notes.append(reason)
            measurement.plan["engine"] = chosen_engine.name
        progress.begin(0, result.target)
        try:
            round_ = measure(workload, cpus, None, progress.during, chosen_engine)
        except RoundInterrupt as interrupt:
            result.rounds.append(interrupt.round)
            raise
        except NoThreadsError as error:
            if engine != "auto":
                raise
            chosen_engine, measurement.notes[-1] = engine_without_threads(
                chosen_engine, cpus, str(error)
            )
            measurement.plan["engine"] = chosen_engine.name
            go(progress)  # once more: it is not "auto" any longer
            return
        result.rounds.append(round_)
        progress.end(f"{result.rounds[0].throughput:,.0f} messages/s")
        if engine == "auto" and chosen_engine.name == "threads" and result.rounds[0].limit:
            measurement.notes[-1] = (
                "Engine: threads, which turned out to be the limit: --engine epoll."
            )

    return measurement.carry_out(go)
