"""What several groups of checks do."""

import re
from contextlib import suppress

from loadtest.check.client.connection import ClientConnection
from loadtest.check.client.crowd import ClientGroup, problems
from loadtest.check.failure import Failure, failure_context
from loadtest.check.trial import CheckContext

MOMENT = 1.0
"""Seconds for what is due at once."""

QUIET = 0.5
"""Seconds without a byte taken after which a server is taken to be full."""


def served_beside(trial: CheckContext, what: str) -> None:
    """Fail unless one more client is served.

    Args:
        trial: The check at hand.
        what: What other clients do meanwhile.
    """
    line = trial.connect("Z")
    with failure_context(f"{what}, "):
        line.ask(trial.text(60))


def all_served(crowd: ClientGroup) -> None:
    """Fail unless every client of a group is served."""
    failed = crowd.visit()
    if not failed:
        return
    first = next((one for one in failed if one.difference is not None), failed[0])
    found = first.difference
    whose = ""
    if found:
        named = re.search(rb"client (\d{4})", first.received[max(0, found.offset - 11) :].lower())
        if named and int(named[1]) != first.number + 1:
            whose = f"client {first.number + 1} got bytes of client {int(named[1])}; "
        else:
            whose = f"client {first.number + 1}: {found.explanation}; "
    raise Failure(f"{whose}of {len(crowd.visitors)} clients, {problems(failed)}", found)


def await_end(trial: CheckContext, line: ClientConnection) -> None:
    """Give the server a moment to end the stream; that it does is C1's business."""
    with suppress(Failure):
        if not trial.never_ends_stream:  # in vain once is enough
            trial.never_ends_stream = not line.ends(MOMENT)
