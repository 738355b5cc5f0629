"""The highest rate at which objectives hold: doubled until they do not, then closed in on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from clients.workload import Workload
from loadtest.load.round import Engine, Round, measure
from loadtest.machine.pinning import Pinning
from loadtest.results.objectives import Objective, figure, format_figure
from loadtest.results.result import Result
from loadtest.results.schema import Row

_FIRST_RATE = 500.0  # messages a second
_HIGHEST_RATE = 10_000_000.0
_MAX_TRIES = 3  # of a rate that failed, if something other than the server may be the cause
_OTHERS_SHARE = 0.25  # of the CPUs, used by other programs
_WAIT_SHARE = 0.1  # of the time, in which the server or the client waited for a CPU
_KEPT_UP_SHARE = (
    0.99  # of the messages that are due: the last ones may come after the end of the step
)


@dataclass(frozen=True, slots=True)
class Step:
    """One rate of the search, and its result."""

    rate: float
    holds: bool
    because: str
    """The objectives that did not hold."""
    client_limited: bool
    row: Row
    spoiled: tuple[str, ...] = ()
    """Why earlier tries of this rate did not count: the effect of the client or the machine."""
    unsure: str = ""
    """The cause, other than the server, that the failure of the last try may have."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of the search."""

    rate: float | None
    """The highest rate that held; None: not even the lowest."""
    client_limited: bool
    """The client was the limit: the server can do at least that."""
    steps: tuple[Step, ...]
    inconclusive: bool = False
    """It is not known whether the server was the limit."""
    ended_early: str = ""
    """The server ended in the last step, or failed every connection; the search could not go on."""


class _SearchEndedError(Exception):
    """The server is gone, so the search cannot go on."""


def find_max(
    workload: Workload,
    objectives: tuple[Objective, ...],
    try_rate: Callable[[float], tuple[Round, Row]],
    say: Callable[[Step], None],
    precision: float = 0.05,
) -> SearchResult:
    """Return the highest rate at which every objective holds, and the rate is kept up.

    Args:
        workload: The load, except for its rate.
        objectives: The objectives that must hold.
        try_rate: Measures one rate.
        say: Called with each step.
        precision: How close to come, as a share.
    """
    steps: list[Step] = []

    def holds(rate: float) -> bool:
        spoiled: list[str] = []
        while True:
            round_, row = try_rate(rate)
            miss = _miss(replace(workload, rate=rate), round_, row, objectives)
            excuse = _excuse(round_) if miss else ""
            if not excuse or len(spoiled) == _MAX_TRIES - 1:
                break
            spoiled.append(excuse)
        client_limited = bool(round_.limit)
        steps.append(Step(rate, not miss, miss, client_limited, row, tuple(spoiled), excuse))
        say(steps[-1])
        early = round_.ended_early
        if early and (early.server_gone or not row["verified"]):
            raise _SearchEndedError(str(early))
        return not miss

    try:
        rate = _search(holds, precision)
    except _SearchEndedError as error:
        return SearchResult(None, client_limited=False, steps=tuple(steps), ended_early=str(error))
    if rate is None:
        return SearchResult(None, steps[-1].client_limited, tuple(steps), bool(steps[-1].unsure))
    failed_steps = [step for step in steps if not step.holds]
    above = min((step.rate for step in failed_steps), default=0.0)
    nearest_failures = [step for step in failed_steps if step.rate <= above * (1 + precision)]
    return SearchResult(
        rate,
        any(step.client_limited for step in nearest_failures),
        tuple(steps),
        any(step.unsure for step in nearest_failures),
    )


def _search(holds: Callable[[float], bool], precision: float) -> float | None:
    """Return the highest rate that holds, as close as `precision`; None: not even the lowest."""
    low, high = 0.0, _FIRST_RATE
    while high < _HIGHEST_RATE and holds(high):
        low, high = high, high * 2
    if not low:  # the first rate does not hold
        low, high = _FIRST_RATE / 16, _FIRST_RATE
        if not holds(low):
            return None
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _excuse(round_: Round) -> str:
    """Return what, other than the server, may have caused a failure; empty: nothing."""
    if round_.ended_early:
        return ""
    if round_.limit:
        return f"the client was the limit: {round_.limit.reasons[0]}"
    wait_share = max(round_.server_wait_share, round_.client_wait_percent / 100)
    if (round_.others_share or 0.0) >= _OTHERS_SHARE and wait_share >= _WAIT_SHARE:
        return (
            f"other programs used {round_.others_share:.0%} of the CPUs, and server or client "
            f"had to wait for one for {wait_share:.0%} of the time"
        )
    return ""


def _miss(workload: Workload, round_: Round, row: Row, objectives: tuple[Objective, ...]) -> str:
    """Return the objectives that did not hold; empty: all of them held."""
    if round_.ended_early:
        return str(round_.ended_early)
    misses = [
        f"{objective.text} ({format_figure(objective.figure, figure(row, objective.figure))})"
        for objective in objectives
        if not objective.holds(row)
    ]
    schedule, duration = workload.schedule, workload.duration
    due = schedule.count(duration) if schedule and duration else 0
    if round_.load.dropped > max(1, (1 - _KEPT_UP_SHARE) * due):
        misses.append(f"{round_.load.dropped} of {due} dropped")
    elif round_.load.verified < _KEPT_UP_SHARE * due and not round_.load.drained:
        misses.append(f"{round_.load.verified} of {due} answered")
    return ", ".join(misses)


def make_rate_test(
    workload: Workload, pinning: Pinning, engine: Engine, label: str
) -> Callable[[float], tuple[Round, Row]]:
    """Return a function that measures `workload` at a rate."""

    def try_rate(rate: float) -> tuple[Round, Row]:
        result = Result(label, None, workload.handler, workload.connections)
        round_ = measure(replace(workload, rate=rate), pinning, engine=engine)
        result.rounds.append(round_)
        return round_, result.as_json()

    return try_rate
