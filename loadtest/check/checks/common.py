"""What several groups of checks have in common."""

import re
from contextlib import suppress

from loadtest.check.client.connection import ClientConnection
from loadtest.check.client.crowd import ClientGroup, problems
from loadtest.check.failure import Failure, failure_context
from loadtest.check.trial import CheckContext

MOMENT = 1.0
"""Seconds to wait for something that is due at once."""

QUIET = 0.5
"""Seconds in which a server takes no byte, after which it is assumed to be full."""


def require_service(trial: CheckContext, what: str) -> None:
    """Fail unless one more client is served.

    Args:
        trial: The check at hand.
        what: What other clients do meanwhile, as the start of the message.
    """
    line = trial.connect("Z")
    with failure_context(f"{what}, "):
        line.ask(trial.text(60))


def require_all_replies(group: ClientGroup) -> None:
    """Fail unless every client of a group is served."""
    failed = group.visit()
    if not failed:
        return
    first = next((one for one in failed if one.difference is not None), failed[0])
    difference = first.difference
    prefix = ""
    if difference:
        match = re.search(
            rb"client (\d{4})", first.received[max(0, difference.offset - 11) :].lower()
        )
        if match and int(match[1]) != first.number + 1:
            prefix = f"client {first.number + 1} got bytes of client {int(match[1])}; "
        else:
            prefix = f"client {first.number + 1}: {difference.explanation}; "
    raise Failure(f"{prefix}of {len(group.visitors)} clients, {problems(failed)}", difference)


def await_end(trial: CheckContext, line: ClientConnection) -> None:
    """Give the server a moment to end the stream; C1 checks that it does."""
    with suppress(Failure):
        if not trial.never_ends_stream:  # waiting in vain once is enough
            trial.never_ends_stream = not line.ends(MOMENT)
