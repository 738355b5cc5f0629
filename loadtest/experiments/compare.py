"""Compare servers: a fresh one for every round, all in turn, each under the same workload."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import echoserver
from clients import EchoClient
from clients.address import format_address
from clients.proxy_header import local_header
from clients.workload import Workload
from loadtest.errors import ClientError, LoadError, NoThreadsError
from loadtest.load.round import Engine, RoundInterrupt, measure
from loadtest.machine.pinning import Pinning
from loadtest.machine.ports import cool_down
from loadtest.results.result import Result
from loadtest.servers.targets import RunningServer, Target, run_on

_PROBE = bytes(range(256)) * 4

_PILOT_SECONDS = 0.4  # the round that shows whether threads can carry the workload

_NEAR_LIMIT_SHARE = 0.75  # of the client's cores: above it, some round would use all of them


@dataclass(frozen=True, slots=True)
class Cell:
    """A target under a workload."""

    target: Target
    workload: Workload
    """Its host and port are replaced by those of each server."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """The values that a sweep sets in the workload."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare, and how."""

    cells: Sequence[Cell]
    rounds: int
    pinning: Pinning
    seed: int
    engine: Engine


class Progress(Protocol):
    """Shows the person at the terminal how far the comparison is."""

    def begin(self, number: int, target: str) -> None:
        """Show that round `number` (from 0), of `target`, begins."""

    def during(self, seconds: float, rate: float, errors: int) -> None:
        """Show the elapsed seconds, the present rate, and the errors of the round."""

    def end(self, text: str) -> None:
        """Show that the round is over, with `text` as its result."""


def schedule(plan: Plan) -> list[int]:
    """Return the numbers of the cells in the order of measurement: each once a round, at random.

    So changes on the machine during the comparison affect all of them alike.
    """
    order = random.Random(plan.seed)
    steps: list[int] = []
    for _ in range(plan.rounds):
        steps += order.sample(range(len(plan.cells)), len(plan.cells))
    return steps


@dataclass(frozen=True, slots=True)
class Failure:
    """A target that could not be measured, and why."""

    target: str
    reason: str
    rounds: int | None = None
    """How many rounds it had completed; None: it failed when it was tried, before the rounds."""
    remedy: str = ""
    """The advice that is added to the reason."""

    def __str__(self) -> str:
        after = f" after {self.rounds} rounds" if self.rounds else ""
        sentence = f"{self.target} was left out{after}: {self.reason.rstrip('.')}"
        return f"{sentence}; {self.remedy}" if self.remedy else sentence


def try_each(plan: Plan, say: Callable[[str], None]) -> tuple[Plan, list[Failure]]:
    """Start each target once, and verify its reply to one client.

    Returns:
        A plan of the targets that reply correctly, and the failures of the others.
    """
    failures: dict[int, Failure] = {}
    targets: dict[int, Target] = {}
    for cell in plan.cells:
        target = cell.target
        if id(target) in targets:  # under another workload of a sweep
            continue
        targets[id(target)] = target
        say(f"trying {target.name}")
        try:
            with run_on(target, plan.pinning.server) as server:
                _verify(server, cell.workload)
        except (LoadError, echoserver.EchoServerError, OSError) as error:
            failures[id(target)] = Failure(target.name, str(error), remedy=target.how_to_check)
    remaining = [cell for cell in plan.cells if id(cell.target) not in failures]
    return replace(plan, cells=remaining), list(failures.values())


def compare(plan: Plan, results: list[Result], progress: Progress) -> list[Failure]:
    """Run every round, and add its figures to `results`, one per cell in the plan's order.

    A target that fails takes part in no later round, and the others go on.

    Returns:
        The targets that failed.

    Raises:
        loadtest.load.coordinator.ClientError: The client cannot carry the workload.

    An interruption leaves the rounds so far in `results`, and no server running. The interrupted
    round is shorter than the others, so it counts only if its target has no other round.
    """
    new_results = [_empty(cell) for cell in plan.cells]
    results.extend(new_results)
    failures: dict[int, Failure] = {}
    for number, cell_number in enumerate(schedule(plan)):
        cell = plan.cells[cell_number]
        if cell_number in failures:
            continue
        progress.begin(number, _name(cell))
        cool_down(cell.workload.connections, progress.during)
        workload = replace(cell.workload, seed=plan.seed + number)
        try:
            with run_on(cell.target, plan.pinning.server) as server:
                _verify(server, workload)
                round_ = measure(
                    replace(workload, host=server.host, port=server.port),
                    plan.pinning,
                    server.pid,
                    progress.during,
                    plan.engine,
                    server.exit_code,
                )
                new_results[cell_number].rounds.append(round_)
        except RoundInterrupt as interrupt:
            if not new_results[cell_number].rounds:
                new_results[cell_number].rounds.append(interrupt.round)
            raise
        except ClientError:
            raise
        except (LoadError, echoserver.EchoServerError, OSError) as error:
            failures[cell_number] = Failure(
                _name(cell), str(error), len(new_results[cell_number].rounds)
            )
            new_results[cell_number].stop_reason = str(error)
            progress.end(f"failed: {error}")
            continue
        early_end = f", {round_.ended_early}" if round_.ended_early else ""
        progress.end(f"{round_.throughput:,.0f} messages/s{early_end}")
    return list(failures.values())


def choose_engine(plan: Plan, say: Callable[[str], None]) -> str:
    """Return why threads cannot carry a plan; empty: they can.

    Each cell is tried for a moment, until one shows that the client of threads is its limit: the
    comparison would then be of the client with itself.
    """
    for cell in plan.cells:
        say(f"trying whether threads can carry {_name(cell)}")
        workload = replace(
            cell.workload, duration=_PILOT_SECONDS, messages=None, warmup=_PILOT_SECONDS / 2
        )
        try:
            with run_on(cell.target, plan.pinning.server) as server:
                round_ = measure(
                    replace(workload, host=server.host, port=server.port),
                    plan.pinning,
                    server.pid,
                    engine=replace(plan.engine, name="threads"),
                )
        except NoThreadsError as error:
            return str(error)
        except (LoadError, echoserver.EchoServerError):
            continue  # its rounds will report the error
        client_share = (
            round_.client_cpu_percent / 100 / min(plan.engine.processes, len(plan.pinning.client))
        )
        if round_.limit or client_share > _NEAR_LIMIT_SHARE:
            return f"threads would be the limit, or nearly, of {_name(cell)}"
    return ""


def _empty(cell: Cell) -> Result:
    other = cell.target.interpreter
    return Result(
        cell.target.name,
        cell.target.backend,
        cell.workload.handler,
        cell.workload.connections,
        cell.sweep,
        {"version": other.version, "gil": other.gil} if other else None,
    )


def _name(cell: Cell) -> str:
    return " ".join([cell.target.name, *(f"{name}={value}" for name, value in cell.sweep.items())])


def _verify(server: RunningServer, workload: Workload) -> None:
    """Reject a server that does not even answer one client correctly."""
    try:
        header = local_header(workload.proxy_header) if workload.proxy_header else b""
        with EchoClient(
            server.host, server.port, workload.timeout, workload.trust, header
        ) as client:
            answers = echoserver.load_handler(workload.handler).answers
            right = client.echo(_PROBE) == answers(_PROBE) and not client.finish()
    except OSError as error:
        raise LoadError(
            f"{format_address(server.host, server.port)} does not answer one client: {error}"
        ) from None
    if not right:
        raise LoadError(
            f"{format_address(server.host, server.port)} does not answer what the handler "
            f"{workload.handler!r} should"
        )
