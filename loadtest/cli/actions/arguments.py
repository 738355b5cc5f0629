"""What was typed, as the values that the commands of `echoload` work with."""

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

# What must be the same in two measurements that are compared.
_SAME = (
    *("connections", "size", "pipeline", "rate", "rate_end", "think", "reconnect_every", "active"),
    *("handler", "tls", "sweep", "pin", "proxy_header", "reconnect"),
)


def make_workload(host: str, port: int, options: dict[str, Any]) -> Workload:
    """Return the workload of options as typed, or complain about what contradicts itself."""
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
    mine = {field.name: options[field.name] for field in fields(Workload) if field.name in options}
    return Workload(host=host, port=port, rate=rate, rate_end=rate_end, **mine)


def make_pinning(mode: str, processes: int) -> Pinning:
    """Return the CPUs that were chosen, or complain."""
    try:
        return pinning.choose(mode, processes)
    except ValueError as error:
        usage(f"--pin {mode} must be {error}")


def make_engine(name: str, processes: int, cpus: Pinning) -> Engine:
    """Return the engine of that name, with what is known of it on this machine."""
    engine = Engine(name, processes)
    one = capacity.known().get(name)
    if one is None or not cpus.split:
        return engine
    return replace(engine, capacity=one.capacity * min(processes, len(cpus.client)))


def one_server(address: str, options: dict[str, Any]) -> tuple[Workload, str]:
    """Return what to ask of the server at an address, and what to call it."""
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
    """Return where the rounds of one server go."""
    return Result(label, None, workload.handler, workload.connections)


def as_plan(workload: Workload, engine: Engine, rounds: int) -> dict[str, Any]:
    """Return what was asked for, as it goes into a document."""
    asked = asdict(workload)
    return {**asked, "rounds": rounds, "engine": engine.name, "processes": engine.processes}


def engine_for_one(engine: Engine, workload: Workload, cpus: Pinning) -> tuple[Engine, str]:
    """Return the engine for one server that runs, and why it is that one."""
    why = selection.too_much_for_threads(workload)
    name = "epoll" if why else "threads"
    said = f"Engine: {name}, chosen because {why or 'threads can carry it, as far as is known'}."
    return make_engine(name, engine.processes, cpus), said


def engine_without_threads(engine: Engine, cpus: Pinning, why: str) -> tuple[Engine, str]:
    """Return the engine that needs no threads, and why it is that one."""
    return make_engine("epoll", engine.processes, cpus), f"Engine: epoll, chosen because {why}."


def engine_for_all(plan: Plan, progress: RoundProgress, notes: list[str]) -> Plan:
    """Return a plan whose engine is chosen, by trying where that is left to us."""
    if plan.engine.name != "auto":
        return plan
    why = next(
        filter(None, (selection.too_much_for_threads(cell.workload) for cell in plan.cells)), ""
    )
    why = why or choose_engine(plan, progress.say)
    name = "epoll" if why else "threads"
    notes.append(f"Engine: {name}, chosen because {why or 'threads can carry all of them'}.")
    return replace(plan, engine=make_engine(name, plan.engine.processes, plan.pinning))


def choose_reference(name: str | None, targets: list[Target]) -> str:
    """Return whom to compare the others with."""
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        usage(f"two targets are called {twice!r}; give one a label, as other={twice}")
    if name is not None and name not in names:
        usage(f"--reference {name} is none of the targets: {', '.join(names)}")
    return name or ("thread" if "thread" in names else names[0])


def make_cells(targets: list[Target], options: dict[str, Any], sweep: str | None) -> list[Cell]:
    """Return each target under the workload, or under each of a sweep."""
    if sweep is None:
        workload = make_workload("", 0, dict(options))
        return [Cell(target, workload) for target in targets]
    name, values = read_sweep(sweep)
    cells = []
    for value in values:
        swept = {**options, name: (value, None) if name == "rate" else value}
        workload = make_workload("", 0, swept)
        cells += [Cell(target, workload, {name: value}) for target in targets]
    return cells


def read_baseline(
    path: str | None, targets: list[Target], plan: dict[str, Any]
) -> list[Row] | None:
    """Return the rows of an earlier measurement of some of `targets`, under the same workload."""
    if path is None:
        return None
    try:
        found = load(path)
    except ValueError as error:
        usage(f"--baseline: {error}")
    except OSError as error:
        usage(f"--baseline: cannot read {path}: {error.strerror}")
    if not {row["target"] for row in found["results"]} & {target.name for target in targets}:
        usage(f"--baseline: {path} has none of these targets")
    before = found["plan"]
    for name in _SAME:
        # What was not asked for is missing in what an older version has measured.
        if (before.get(name) or None) != (plan.get(name) or None):
            usage(
                f"--baseline: {path} was measured under another workload: "
                f"{name.replace('_', '-')} {before.get(name)}, and not {plan.get(name)}"
            )
    return found["results"]


def describe_plan(plan: Plan, duration: float, done: int) -> str:
    """Return what was asked for, and how far it came, in a sentence or two.

    Args:
        plan: What was compared.
        duration: Of each round, in seconds.
        done: How many rounds each target came through, but for those that failed.
    """
    workload = plan.cells[0].workload
    swept = plan.cells[0].sweep
    where = (
        "server and client on cores of their own"
        if plan.pinning.split
        else "server and client share all cores"
    )
    words = [] if "connections" in swept else [f"{workload.connections} connections"]
    if workload.active:
        words.append(f"{workload.active} of them active")
    if workload.reconnect_every:
        words.append(f"reconnected every {workload.reconnect_every}")
    if "size" not in swept:
        size = workload.size
        words.append(
            f"{size}-byte messages" if str(size).isdigit() else f"messages of {size} bytes"
        )
    if workload.pipeline > 1:
        words.append(f"{workload.pipeline} at a time")
    if workload.think:
        words.append(f"thinking {workload.think}")
    if workload.rate:
        upto = f" to {workload.rate_end:,.0f}" if workload.rate_end else ""
        words.append(f"due at {workload.rate:,.0f}{upto} a second")
    rounds = f"{plan.rounds} interleaved rounds" if plan.rounds > 1 else "one round"
    words.append(rounds if done >= plan.rounds else f"after {done} of {rounds}")
    processes = f" in {plan.engine.processes} processes" if plan.engine.processes > 1 else ""
    return (
        f"{', '.join(words)} of {duration:g} s; {where}; client: {plan.engine.name}{processes}. "
        "RSS counts the pages that processes share once for each of them, PSS once in all."
    )
