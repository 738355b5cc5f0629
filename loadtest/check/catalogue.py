"""All checks, and the selection by patterns."""

import fnmatch
from collections.abc import Iterable, Sequence

from loadtest.check.checks import (  # noqa: F401 - they fill CHECKS
    capacity,
    concurrency,
    connection,
    leftovers,
    life,
    stream,
)
from loadtest.check.model import CHECKS, GROUPS, Check


def choose(only: str | None, skip: str | None) -> list[Check]:
    """Return the checks that match `only`, such as ``N4,C*``, without those that match `skip`.

    Raises:
        ValueError: A pattern matches none; the message is a sentence.
    """
    selection = _ids_matching(only, "--only") if only else {one.id for one in every()}
    selection -= _ids_matching(skip, "--skip") if skip else set()
    if not selection:
        raise ValueError("--only and --skip leave no check to run")
    return [one for one in every() if one.id in selection]


def every() -> list[Check]:
    """Return all checks, in the order in which they run."""
    return in_order(CHECKS.values())


def in_order(checks: Iterable[Check]) -> list[Check]:
    """Return checks in the order in which they run."""
    return sorted(checks, key=lambda one: (list(GROUPS).index(one.id[0]), one.id))


def prerequisites(selection: Sequence[Check]) -> list[Check]:
    """Return the checks besides those of `selection` that must run for their verdicts to stand.

    That is what they need, those whose failures they take into account, and L2, which notes the
    greeting that all later ones expect. So a check has the same verdict whatever else is selected.
    """
    needed = {one.id for one in selection}
    pending = [*selection]
    while pending:
        one = pending.pop()
        ids = (*one.needs, *one.consults, *(() if one.id in {"L1", "L2"} else ("L2",)))
        for missing in set(ids) - needed:
            needed.add(missing)
            pending.append(CHECKS[missing])
    return [CHECKS[name] for name in needed - {one.id for one in selection}]


def _ids_matching(patterns: str, option: str) -> set[str]:
    ids = [one.id for one in every()]
    selection: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = fnmatch.filter(ids, pattern.upper())
        if not matches:
            raise ValueError(f"{option}: {pattern!r} is not a check; see --list")
        selection.update(matches)
    return selection
