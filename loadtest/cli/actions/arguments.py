"""The arguments of `echoload`, converted to the values that its commands work with."""

import socket
from dataclasses import asdict, fields, replace
from typing import Any

import click

from clients.address import format_address, is_unix, parse_address
from clients.tls_options import trust_of
from clients.workload import Workload
from echoserver import load_handler
from loadtest.cli.actions.progress import RoundProgress
from loadtest.cli.types import positive, read_sweep
from loadtest.errors import usage
from loadtest.experiments.compare import Cell, Plan, choose_engine
from loadtest.load import capacity
from loadtest.load.round import Engine
from loadtest.machine import pinning
from loadtest.machine.pinning import Pinning
from loadtest.results.document import load
from loadtest.results.result import Result
from loadtest.results.schema import Row
from loadtest.servers import selection
from loadtest.servers.targets import Target

# The parts of a plan that must be the same in a measurement and its baseline.
_SAME_IN_BASELINE = (
    *("connections", "size", "pipeline", "rate", "rate_end", "think", "reconnect_every", "active"),
    *("handler", "tls", "sweep", "pin", "proxy_header", "reconnect"),
)


def make_workload(host: str, port: int, options: dict[str, Any]) -> Workload:
    """Return the workload of the options as typed; reject options that contradict each other."""
    rate, rate_end = options.pop("rate", None) or (None, None)
    options["timeout"] = positive(options["timeout"], "--timeout")
    active, connections = options["active"], options["connections"]
    if active is not None and active > connections:
        usage(f"--active {active} is more than there are connections ({connections})")
    if rate_end is not None and options.get("duration") is None:
        usage("-R with a ramp needs -d: it ends with the time")
    if options.get("warmup") and options.get("duration") is None:
        usage("--warmup needs -d: of a number of messages, each one counts")
    if options["think"] and rate is not None:
        usage("--think and -R contradict each other: one of them says when a message is due")
    trust_of(options)
    settings = {
        field.name: options[field.name] for field in fields(Workload) if field.name in options
    }
    return Workload(host=host, port=port, rate=rate, rate_end=rate_end, **settings)


def make_pinning(mode: str, processes: int) -> Pinning:
    """Return the CPUs of server and client; reject a wrong --pin."""
    try:
        return pinning.choose(mode, processes)
    except ValueError as error:
        usage(f"--pin {mode} must be {error}")


def make_engine(name: str, processes: int, cpus: Pinning) -> Engine:
    """Return the engine of a name, with its capacity on this machine if it is known."""
    engine = Engine(name, processes)
    calibration = capacity.load_calibrations().get(name)
    if calibration is None or not cpus.split:
        return engine
    return replace(engine, capacity=calibration.capacity * min(processes, len(cpus.client)))


def one_server(address: str, options: dict[str, Any]) -> tuple[Workload, str]:
    """Return the workload for the server at an address, and the label of the server."""
    try:
        host, port = parse_address(address)
    except ValueError as error:
        usage(str(error))
    try:
        if not is_unix(host):
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise click.ClickException(f"cannot resolve the host {host!r}: {reason}") from None
    load_handler(options["handler"])
    return make_workload(host, port, options), format_address(host, port)


def empty_result(label: str, workload: Workload) -> Result:
    """Return a result of one server, without rounds yet."""
    return Result(label, None, workload.handler, workload.connections)


def as_plan(workload: Workload, engine: Engine, rounds: int) -> dict[str, Any]:
    """Return the plan as it goes into a document."""
    options = asdict(workload)
    return {**options, "rounds": rounds, "engine": engine.name, "processes": engine.processes}


def engine_for_one(engine: Engine, workload: Workload, cpus: Pinning) -> tuple[Engine, str]:
    """Return the engine for one running server, and a note with the reason for it."""
    reason = selection.too_much_for_threads(workload)
    name = "epoll" if reason else "threads"
    note = f"Engine: {name}, chosen because {reason or 'threads can carry it, as far as is known'}."
    return make_engine(name, engine.processes, cpus), note


def engine_without_threads(engine: Engine, cpus: Pinning, reason: str) -> tuple[Engine, str]:
    """Return the engine that needs no threads, and a note with the reason for it."""
    return make_engine("epoll", engine.processes, cpus), f"Engine: epoll, chosen because {reason}."


def engine_for_all(plan: Plan, progress: RoundProgress, notes: list[str]) -> Plan:
    """Return a plan with an engine; if that is "auto", the engine is chosen by trying."""
    if plan.engine.name != "auto":
        return plan
    reason = next(
        filter(None, (selection.too_much_for_threads(cell.workload) for cell in plan.cells)), ""
    )
    reason = reason or choose_engine(plan, progress.say)
    name = "epoll" if reason else "threads"
    notes.append(f"Engine: {name}, chosen because {reason or 'threads can carry all of them'}.")
    return replace(plan, engine=make_engine(name, plan.engine.processes, plan.pinning))


def choose_reference(name: str | None, targets: list[Target]) -> str:
    """Return the name of the target that the others are compared with."""
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        usage(f"two targets are called {duplicate!r}; give one a label, as other={duplicate}")
    if name is not None and name not in names:
        usage(f"--reference {name} is none of the targets: {', '.join(names)}")
    return name or ("thread" if "thread" in names else names[0])


def make_cells(targets: list[Target], options: dict[str, Any], sweep: str | None) -> list[Cell]:
    """Return the cells: each target under the workload, or under each one of a sweep."""
    if sweep is None:
        workload = make_workload("", 0, dict(options))
        return [Cell(target, workload) for target in targets]
    name, values = read_sweep(sweep)
    cells = []
    for value in values:
        cell_options = {**options, name: (value, None) if name == "rate" else value}
        workload = make_workload("", 0, cell_options)
        cells += [Cell(target, workload, {name: value}) for target in targets]
    return cells


def read_baseline(
    path: str | None, targets: list[Target], plan: dict[str, Any]
) -> list[Row] | None:
    """Return the rows of an earlier measurement of some of `targets`, under the same workload."""
    if path is None:
        return None
    try:
        document = load(path)
    except ValueError as error:
        usage(f"--baseline: {error}")
    except OSError as error:
        usage(f"--baseline: cannot read {path}: {error.strerror}")
    if not {row["target"] for row in document["results"]} & {target.name for target in targets}:
        usage(f"--baseline: {path} has none of these targets")
    baseline_plan = document["plan"]
    for name in _SAME_IN_BASELINE:
        # A plan of an older version lacks newer options, which then had no effect.
        if (baseline_plan.get(name) or None) != (plan.get(name) or None):
            usage(
                f"--baseline: {path} was measured under another workload: "
                f"{name.replace('_', '-')} {baseline_plan.get(name)}, and not {plan.get(name)}"
            )
    return document["results"]


def describe_plan(plan: Plan, duration: float, complete_rounds: int) -> str:
    """Return a sentence or two on the plan, and on how much of it was completed.

    Args:
        plan: The plan of the comparison.
        duration: The duration of each round, in seconds.
        complete_rounds: How many rounds each target completed, except for those that failed.
    """
    workload = plan.cells[0].workload
    sweep = plan.cells[0].sweep
    cores = (
        "server and client on cores of their own"
        if plan.pinning.split
        else "server and client share all cores"
    )
    words = [] if "connections" in sweep else [f"{workload.connections} connections"]
    if workload.active:
        words.append(f"{workload.active} of them active")
    if workload.reconnect_every:
        words.append(f"reconnected every {workload.reconnect_every}")
    if "size" not in sweep:
        size = workload.size
        words.append(
            f"{size}-byte messages" if str(size).isdigit() else f"messages of {size} bytes"
        )
    if workload.pipeline > 1:
        words.append(f"{workload.pipeline} at a time")
    if workload.think:
        words.append(f"thinking {workload.think}")
    if workload.rate:
        ramp_end = f" to {workload.rate_end:,.0f}" if workload.rate_end else ""
        words.append(f"due at {workload.rate:,.0f}{ramp_end} a second")
    rounds = f"{plan.rounds} interleaved rounds" if plan.rounds > 1 else "one round"
    words.append(
        rounds if complete_rounds >= plan.rounds else f"after {complete_rounds} of {rounds}"
    )
    processes = f" in {plan.engine.processes} processes" if plan.engine.processes > 1 else ""
    return (
        f"{', '.join(words)} of {duration:g} s; {cores}; client: {plan.engine.name}{processes}. "
        "RSS counts the pages that processes share once for each of them, PSS once in all."
    )
