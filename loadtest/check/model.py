"""The checks, their results, and the report."""

from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.check.evidence import Evidence
from loadtest.check.trial import CheckContext

PASSED, FAILED, SKIPPED, ERROR = "passed", "failed", "skipped", "error"


@dataclass(frozen=True, slots=True)
class Check:
    """A check of one thing that an echo server owes."""

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
    run: Callable[[CheckContext], None]
    needs: tuple[str, ...] = ()
    """Checks without which it makes no sense."""
    process: bool = False
    """The check looks at the server's process, or ends it."""
    starts: bool = False
    """The check starts the server itself."""
    bonus: bool = False
    """Its weight comes on top."""
    crowd: bool = False
    """The check opens as many connections as ``--clients`` says."""
    consults: tuple[str, ...] = ()
    """Checks that it spares the server if it has failed them (`CheckContext.known_to_break`)."""

    @property
    def group(self) -> str:
        """The group of the check: Life, Stream, Connection or Concurrency."""
        return GROUPS[self.id[0]]


GROUPS = {"L": "Life", "S": "Stream", "C": "Connection", "N": "Concurrency"}

CHECKS: dict[str, Check] = {}
"""All checks by id; `catalogue.every` has them in order."""


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
    crowd: bool = False,
    consults: tuple[str, ...] = (),
) -> Callable[[Callable[[CheckContext], None]], Callable[[CheckContext], None]]:
    """Return a decorator that adds a function to the list of checks; see `Check`."""

    def add(run: Callable[[CheckContext], None]) -> Callable[[CheckContext], None]:
        CHECKS[id] = Check(
            *(id, title, purpose, wire, passes, hint, weight, run, needs),
            process=process,
            starts=starts,
            bonus=bonus,
            crowd=crowd,
            consults=consults,
        )
        return run

    return add


@dataclass(slots=True)
class Result:
    """The result of a check."""

    check: Check
    status: str
    """``passed``, ``failed``, ``skipped``, or ``error`` (of the grader)."""
    weight: float
    """The points of the check; an instructor may have set them."""
    message: str = ""
    purpose: str = ""
    """Why it matters, and..."""
    hint: str = ""
    """... where to look, where it failed."""
    evidence: Evidence = field(default_factory=Evidence)
    seconds: float = 0.0
    applicable: bool = True
    """The check makes sense for this server, so it counts."""

    @property
    def score(self) -> float:
        """The points that the check contributes."""
        return self.weight if self.status == PASSED else 0.0

    @property
    def max_score(self) -> float:
        """What it could have contributed, bonus or not."""
        return self.weight if self.applicable else 0.0


@dataclass(slots=True)
class Report:
    """The results of all checks so far."""

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
        """All checks that apply were carried out, and passed."""
        return not any(one.status in {FAILED, ERROR} or _is_missed(one) for one in self.results)


def _is_missed(result: Result) -> bool:
    return result.status == SKIPPED and result.applicable
