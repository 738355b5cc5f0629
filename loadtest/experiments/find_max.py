"""The highest rate at which objectives hold: doubled until they do not, then closed in on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from clients.workload import Workload
from loadtest.load.round import Engine, Round, measure
from loadtest.machine.pinning import Pinning
from loadtest.results.objectives import Objective, figure, shown
from loadtest.results.result import Result
from loadtest.results.schema import Row

_FIRST = 500.0  # messages a second
_HIGHEST = 10_000_000.0
_TRIES = 3  # of a rate that failed, as long as it was not the server that failed it
_OTHERS = 0.25  # of the machine, that somebody else used
_WAITED = 0.1  # of the time, for which the server or the client wanted a CPU that another had
_KEPT_UP = 0.99  # of the messages that are due: the others may be lost to a step's last moment


@dataclass(frozen=True, slots=True)
class Step:
    """One rate, and what came of it."""

    rate: float
    holds: bool
    because: str
    """What did not hold."""
    client_limited: bool
    row: Row
    spoiled: tuple[str, ...] = ()
    """Why earlier tries of this rate did not count: what the client or the machine did to them."""
    unsure: str = ""
    """What, other than the server, may have failed the last try as well."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the search gave."""

    rate: float | None
    """The highest rate that held; None: not even the lowest."""
    client_limited: bool
    """It was the client that could not do more: the server can do at least that."""
    steps: tuple[Step, ...]
    unsure: bool = False
    """Whether it was the server that could not do more, cannot be told."""
    ended_early: str = ""
    """The server ended in the last step, or failed every connection; the search could not go on."""


class _SearchEndedError(Exception):
    """There is nothing left to search with."""


def find_max(
    workload: Workload,
    objectives: tuple[Objective, ...],
    try_rate: Callable[[float], tuple[Round, Row]],
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
        spoiled: list[str] = []
        while True:
            measured, row = try_rate(rate)
            because = _because(replace(workload, rate=rate), measured, row, objectives)
            excuse = _spoiled(measured) if because else ""
            if not excuse or len(spoiled) == _TRIES - 1:
                break
            spoiled.append(excuse)
        limited = bool(measured.limit)
        steps.append(Step(rate, not because, because, limited, row, tuple(spoiled), excuse))
        say(steps[-1])
        early = measured.ended_early
        if early and (early.server_gone or not row["verified"]):
            raise _SearchEndedError(str(early))
        return not because

    try:
        rate = _search(holds, precision)
    except _SearchEndedError as error:
        return Found(None, client_limited=False, steps=tuple(steps), ended_early=str(error))
    if rate is None:
        return Found(None, steps[-1].client_limited, tuple(steps), bool(steps[-1].unsure))
    failed = [step for step in steps if not step.holds]
    above = min((step.rate for step in failed), default=0.0)
    near = [step for step in failed if step.rate <= above * (1 + precision)]
    return Found(
        rate,
        any(step.client_limited for step in near),
        tuple(steps),
        any(step.unsure for step in near),
    )


def _search(holds: Callable[[float], bool], precision: float) -> float | None:
    """Return the highest rate that holds, as close as `precision`; None: not even the lowest."""
    low, high = 0.0, _FIRST
    while high < _HIGHEST and holds(high):
        low, high = high, high * 2
    if not low:  # less than the first
        low, high = _FIRST / 16, _FIRST
        if not holds(low):
            return None
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _spoiled(measured: Round) -> str:
    """Return what, other than the server, may have failed a rate; nothing where nothing may."""
    if measured.ended_early:
        return ""
    if measured.limit:
        return f"the client was the limit: {measured.limit.reasons[0]}"
    waited = max(measured.server_wait_share, measured.client_wait_percent / 100)
    if (measured.others_share or 0.0) >= _OTHERS and waited >= _WAITED:
        return (
            f"other programs used {measured.others_share:.0%} of the CPUs, and server or client "
            f"had to wait for one for {waited:.0%} of the time"
        )
    return ""


def _because(
    workload: Workload, measured: Round, row: Row, objectives: tuple[Objective, ...]
) -> str:
    """Return what did not hold; nothing where everything did."""
    if measured.ended_early:
        return str(measured.ended_early)
    broken = [
        f"{objective.text} ({shown(objective.figure, figure(row, objective.figure))})"
        for objective in objectives
        if not objective.holds(row)
    ]
    schedule, duration = workload.schedule, workload.duration
    due = schedule.count(duration) if schedule and duration else 0
    if measured.load.dropped > max(1, (1 - _KEPT_UP) * due):
        broken.append(f"{measured.load.dropped} of {due} dropped")
    elif measured.load.verified < _KEPT_UP * due and not measured.load.drained:
        broken.append(f"{measured.load.verified} of {due} answered")
    return ", ".join(broken)


def trier(
    workload: Workload, pinning: Pinning, engine: Engine, label: str
) -> Callable[[float], tuple[Round, Row]]:
    """Return what measures one rate of `workload`."""

    def try_rate(rate: float) -> tuple[Round, Row]:
        result = Result(label, None, workload.handler, workload.connections)
        measured = measure(replace(workload, rate=rate), pinning, engine=engine)
        result.rounds.append(measured)
        return measured, result.as_json()

    return try_rate
