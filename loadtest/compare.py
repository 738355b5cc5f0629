"""Compare servers: fresh ones, in rounds, interleaved in a random order, under one workload."""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import echoserver
from clients.client import EchoClient
from clients.load import Workload
from loadtest.measure import LoadError, measure
from loadtest.pinning import Pinning, pinned
from loadtest.report import Result
from loadtest.targets import Running, Target

_PROBE = bytes(range(256)) * 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare, and how."""

    targets: Sequence[Target]
    rounds: int
    workload: Workload
    """Its host and port are those of each server in turn."""
    pinning: Pinning
    seed: int
    engine: str = "threads"


class Progress(Protocol):
    """Whoever tells the person at the terminal how far we are."""

    def begin(self, number: int, target: str) -> None:
        """Round `number` (from 0), of `target`, begins."""

    def during(self, seconds: float) -> None:
        """The workload has run for so long."""

    def end(self, text: str) -> None:
        """That round is over; `text` says what it gave."""


def schedule(plan: Plan) -> list[Target]:
    """Return the targets in the order of measurement: each once a round, in a random order.

    So whatever changes on the machine meanwhile falls on all of them alike.
    """
    order = random.Random(plan.seed)
    steps: list[Target] = []
    for _ in range(plan.rounds):
        steps += order.sample(list(plan.targets), len(plan.targets))
    return steps


def compare(plan: Plan, results: list[Result], progress: Progress) -> None:
    """Run every round, and add what it gave to `results`, one per target in the plan's order.

    Being interrupted leaves the rounds so far in `results`, and no server behind.

    Raises:
        LoadError: A round could not be run.
        echoserver.EchoServerError: A server did not start.
    """
    workload = plan.workload
    by_name = {
        target.name: Result(target.name, target.backend, workload.handler, workload.connections)
        for target in plan.targets
    }
    results.extend(by_name.values())
    for number, target in enumerate(schedule(plan)):
        progress.begin(number, target.name)
        with ExitStack() as stack:
            with pinned(plan.pinning.server):  # what is started in it stays there
                server = stack.enter_context(target.started())
            _verify(server, workload.handler, workload.timeout)
            measured = measure(
                replace(workload, host=server.host, port=server.port, seed=plan.seed + number),
                plan.pinning,
                server.pid,
                progress.during,
                plan.engine,
            )
            by_name[target.name].rounds.append(measured)
        progress.end(f"{measured.throughput:,.0f} messages/s")


def _verify(server: Running, handler: str, timeout: float) -> None:
    """Refuse to measure a server that does not even answer one client right."""
    with EchoClient(server.host, server.port, timeout) as client:
        answers = echoserver.load_handler(handler).answers
        if client.echo(_PROBE) != answers(_PROBE) or client.finish():
            raise LoadError(f"the handler {handler!r} does not answer what it should")
