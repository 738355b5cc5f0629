"""Compare servers: fresh ones, in rounds, interleaved in a random order, under one workload."""

import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import echoserver
from clients.client import EchoClient
from clients.threads import ANSWERS, Workload
from loadtest.measure import LoadError, measure
from loadtest.pinning import Pinning, pinned
from loadtest.report import Result

_PROBE = bytes(range(256)) * 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare, and how."""

    backends: Sequence[str]
    handler: str
    rounds: int
    workload: Workload
    """Its host and port are those of each server in turn."""
    pinning: Pinning
    seed: int


class Progress(Protocol):
    """Whoever tells the person at the terminal how far we are."""

    def begin(self, number: int, target: str) -> None:
        """Round `number` (from 0), of `target`, begins."""

    def during(self, seconds: float) -> None:
        """The workload has run for so long."""

    def end(self, text: str) -> None:
        """That round is over; `text` says what it gave."""


def schedule(plan: Plan) -> list[str]:
    """Return the backends in the order of measurement: each once a round, in a random order.

    So whatever changes on the machine meanwhile falls on all of them alike.
    """
    order = random.Random(plan.seed)
    steps: list[str] = []
    for _ in range(plan.rounds):
        steps += order.sample(list(plan.backends), len(plan.backends))
    return steps


def compare(plan: Plan, results: list[Result], progress: Progress) -> None:
    """Run every round, and add what it gave to `results`, one per backend in the plan's order.

    Being interrupted leaves the rounds so far in `results`, and no server behind.

    Raises:
        LoadError: A round could not be run.
        echoserver.EchoServerError: A server did not start.
    """
    connections = plan.workload.connections
    by_backend = {
        backend: Result(backend, backend, plan.handler, connections) for backend in plan.backends
    }
    results.extend(by_backend.values())
    for number, backend in enumerate(schedule(plan)):
        progress.begin(number, backend)
        with pinned(plan.pinning.server):
            server = echoserver.spawn(backend=backend, handler=plan.handler, log_level="warning")
        try:
            with server:
                _verify(server, plan.handler)
                workload = replace(
                    plan.workload, host=server.host, port=server.port, seed=plan.seed + number
                )
                measured = measure(workload, plan.pinning, server.pid, progress.during)
                by_backend[backend].rounds.append(measured)
        except subprocess.TimeoutExpired as error:
            raise LoadError(
                f"the server of {backend} did not end within {error.timeout:.0f} s of SIGTERM"
            ) from None
        progress.end(f"{measured.throughput:,.0f} messages/s")


def _verify(server: "echoserver.SpawnedServer", handler: str) -> None:
    """Refuse to measure a server that does not even answer one client right."""
    with EchoClient(server.host, server.port) as client:
        if client.echo(_PROBE) != ANSWERS[handler](_PROBE) or client.finish():
            raise LoadError(f"the handler {handler!r} does not answer what it should")
