"""All checks, and those that were asked for."""

import fnmatch

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
    return sorted(CHECKS.values(), key=lambda one: (list(GROUPS).index(one.id[0]), one.id))


def _matching(patterns: str, option: str) -> set[str]:
    ids = [one.id for one in every()]
    found: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matching = fnmatch.filter(ids, pattern.upper())
        if not matching:
            raise ValueError(f"{option}: {pattern!r} is not a check; see --list")
        found.update(matching)
    return found
