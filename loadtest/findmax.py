"""The highest rate at which objectives hold: doubled until they do not, then closed in on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from clients.workload import Workload
from loadtest.measure import Engine, Round, measure
from loadtest.pinning import Pinning
from loadtest.results import Result
from loadtest.sampler import local_server
from loadtest.thresholds import Objective

_FIRST = 500.0  # messages a second
_HIGHEST = 10_000_000.0
_KEPT_UP = 0.99  # of the messages that are due: the others may be lost to a step's last moment


@dataclass(frozen=True, slots=True)
class Step:
    """One rate, and what came of it."""

    rate: float
    holds: bool
    because: str
    """What did not hold."""
    client_limited: bool
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What the search gave."""

    rate: float | None
    """The highest rate that held; None: not even the lowest."""
    client_limited: bool
    """It was the client that could not do more: the server can do at least that."""
    steps: tuple[Step, ...]


def find_max(
    workload: Workload,
    objectives: tuple[Objective, ...],
    try_rate: Callable[[float], tuple[Round, dict[str, Any]]],
    say: Callable[[Step], None],
    precision: float = 0.05,
) -> Found:
    """Return the highest rate at which every objective holds, and the rate is kept up.

    Args:
        workload: What to ask, but for the rate.
        objectives: What must hold.
        try_rate: Measures one rate.
        say: Told of each step.
        precision: How close to come, as a share.
    """
    steps: list[Step] = []

    def holds(rate: float) -> bool:
        measured, row = try_rate(rate)
        because = _because(replace(workload, rate=rate), measured, row, objectives)
        limited = bool(measured.limit)
        steps.append(Step(rate, not because, because, limited, row))
        say(steps[-1])
        return not because

    low, high = 0.0, _FIRST
    while high < _HIGHEST and holds(high):
        low, high = high, high * 2
    if not low:  # less than the first
        low, high = _FIRST / 16, _FIRST
        if not holds(low):
            return Found(None, steps[-1].client_limited, tuple(steps))
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    failed = [step for step in steps if not step.holds and step.rate <= high * (1 + precision)]
    return Found(low, any(step.client_limited for step in failed), tuple(steps))


def _because(
    workload: Workload, measured: Round, row: dict[str, Any], objectives: tuple[Objective, ...]
) -> str:
    """Return what did not hold; nothing where everything did."""
    broken = [objective.text for objective in objectives if not objective.holds(row)]
    schedule, duration = workload.schedule, workload.duration
    due = schedule.count(duration) if schedule and duration else 0
    if measured.load.dropped > max(1, (1 - _KEPT_UP) * due):
        broken.append(f"{measured.load.dropped} of {due} dropped")
    elif measured.load.verified < _KEPT_UP * due and not measured.load.drained:
        broken.append(f"{measured.load.verified} of {due} answered")
    return ", ".join(broken)


def trier(
    workload: Workload, pinning: Pinning, engine: Engine, label: str
) -> Callable[[float], tuple[Round, dict[str, Any]]]:
    """Return what measures one rate of `workload`."""
    pid = local_server(workload.host, workload.port)

    def try_rate(rate: float) -> tuple[Round, dict[str, Any]]:
        result = Result(label, None, workload.handler, workload.connections)
        measured = measure(replace(workload, rate=rate), pinning, pid, engine=engine)
        result.rounds.append(measured)
        return measured, result.as_json()

    return try_rate
