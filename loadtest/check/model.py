"""What a check is, how it speaks of what it found, and the list of all checks."""

import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.check.client.evidence import Difference, Evidence

if TYPE_CHECKING:
    from loadtest.check.trial import Trial

PASSED, FAILED, SKIPPED, ERROR = "passed", "failed", "skipped", "error"


class Failure(Exception):  # noqa: N818 - an outcome of a check, no error of ours
    """The server does not do what it owes; the message is a sentence for its author."""

    def __init__(self, message: str, difference: Difference | None = None) -> None:
        super().__init__(message)
        self.difference = difference
        self.received = b""
        """What came instead of what was owed."""
        self.output: list[str] | None = None
        """What the server printed, where it is gone already."""
        self.instead: tuple[str, str] | None = None
        """A purpose and a hint that fit better than those of the check."""


@contextmanager
def told(circumstances: str) -> Iterator[None]:
    """Put before the message of a failure in the block under which circumstances it came."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{circumstances}{failure}", failure.difference) from None


class NoEchoServer(Failure):
    """It does something else altogether; further checks would tell nothing."""


class NotApplicable(Exception):  # noqa: N818 - an outcome of a check, no error of ours
    """The check makes no sense here; the message says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that an echo server owes."""

    id: str
    title: str
    purpose: str
    """Why it matters."""
    wire: str
    """What is done, on the wire."""
    passes: str
    """When it is passed."""
    hint: str
    """Where to look."""
    weight: float
    run: Callable[["Trial"], None]
    needs: tuple[str, ...] = ()
    """Checks without which it makes no sense."""
    process: bool = False
    """It looks at the server's process, or ends it."""
    starts: bool = False
    """It starts the server itself."""
    bonus: bool = False
    """Its weight comes on top."""

    @property
    def group(self) -> str:
        """What it belongs to: Life, Stream, Connection or Concurrency."""
        return GROUPS[self.id[0]]


GROUPS = {"L": "Life", "S": "Stream", "C": "Connection", "N": "Concurrency"}
CHECKS: dict[str, Check] = {}
"""All checks by id; `every` has them in order."""


def check(
    id: str,  # noqa: A002 - what it is called everywhere
    title: str,
    *,
    purpose: str,
    wire: str,
    passes: str,
    hint: str,
    weight: float,
    needs: tuple[str, ...] = ("L1",),
    process: bool = False,
    starts: bool = False,
    bonus: bool = False,
) -> Callable[[Callable[["Trial"], None]], Callable[["Trial"], None]]:
    """Return what puts a function into the list of checks; see `Check`."""

    def add(run: Callable[["Trial"], None]) -> Callable[["Trial"], None]:
        CHECKS[id] = Check(
            id, title, purpose, wire, passes, hint, weight, run, needs, process, starts, bonus
        )
        return run

    return add


def choose(only: str | None, skip: str | None) -> list[Check]:
    """Return the checks of some patterns, as ``N4,C*``, without those of others.

    Raises:
        ValueError: A pattern matches none; the message is a sentence.
    """
    wanted = _matching(only, "--only") if only else {one.id for one in every()}
    wanted -= _matching(skip, "--skip") if skip else set()
    if not wanted:
        raise ValueError("--only and --skip leave no check to run")
    return [one for one in every() if one.id in wanted]


def every() -> list[Check]:
    """Return all checks, in the order in which they run."""
    from loadtest.check.checks import (  # noqa: F401 - fill CHECKS
        concurrency,
        connection,
        life,
        stream,
    )

    return sorted(CHECKS.values(), key=lambda one: (list(GROUPS).index(one.id[0]), one.id))


def _matching(patterns: str, option: str) -> set[str]:
    ids = [one.id for one in every()]
    found: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matching = fnmatch.filter(ids, pattern.upper())
        if not matching:
            raise ValueError(f"{option}: {pattern!r} is no check; see --list")
        found.update(matching)
    return found


@dataclass(slots=True)
class Result:
    """What became of a check."""

    check: Check
    status: str
    """``passed``, ``failed``, ``skipped`` or ``error``: of the grader."""
    weight: float
    """What it counts, where not everybody's weights are taken."""
    message: str = ""
    purpose: str = ""
    """Why it matters, and..."""
    hint: str = ""
    """... where to look, where it failed."""
    evidence: Evidence = field(default_factory=Evidence)
    seconds: float = 0.0
    applicable: bool = True
    """It could have been passed: it counts."""

    @property
    def score(self) -> float:
        """What it contributes."""
        return self.weight if self.status == PASSED else 0.0

    @property
    def max_score(self) -> float:
        """What it could have contributed, bonus or not."""
        return self.weight if self.applicable else 0.0


@dataclass(slots=True)
class Report:
    """What was found, so far."""

    server: str
    """What was graded: a command, or an address."""
    expect: str
    seed: int
    repeat: int
    results: list[Result]
    seconds: float = 0.0
    complete: bool = False
    leaderboard: dict[str, float] = field(default_factory=dict)
    """Figures of a load test, by name."""

    def of(self, status: str) -> list[Result]:
        """Return the results of a status."""
        return [result for result in self.results if result.status == status]

    @property
    def score(self) -> float:
        """The sum, with bonus."""
        return sum(result.score for result in self.results)

    @property
    def max_score(self) -> float:
        """The most that can be had without bonus."""
        return sum(one.max_score for one in self.results if not one.check.bonus)

    @property
    def bonus(self) -> float:
        """The part of the score that is a bonus."""
        return sum(one.score for one in self.results if one.check.bonus)

    @property
    def good(self) -> bool:
        """Everything that could be checked was, and passed."""
        return not any(one.status in {FAILED, ERROR} or _missed(one) for one in self.results)


def _missed(result: Result) -> bool:
    return result.status == SKIPPED and result.applicable
