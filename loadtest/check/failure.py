"""The outcomes of a check that is not passed."""

from collections.abc import Iterator
from contextlib import contextmanager

from clients.own_limits import OWN_LIMITS
from loadtest.check.evidence import Difference


class Failure(Exception):  # noqa: N818 - an outcome of a check, not an error of ours
    """The server does not do what it owes; the message is a sentence for its author."""

    def __init__(self, message: str, difference: Difference | None = None) -> None:
        super().__init__(message)
        self.difference = difference
        self.received = b""
        """What came instead of what was owed."""
        self.output: list[str] | None = None
        """The output of a server that is gone already."""
        self.instead: tuple[str, str] | None = None
        """A purpose and a hint that fit better than those of the check."""


@contextmanager
def failure_context(circumstances: str) -> Iterator[None]:
    """Prefix the message of a failure in the block with its circumstances."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{circumstances}{failure}", failure.difference) from None


class NoEchoServer(Failure):
    """The server does something else altogether, so further checks are pointless."""


class OwnLimitReached(Exception):  # noqa: N818 - an outcome of a check, not an error of ours
    """This machine, and not the server, cannot do more; the message says what is missing."""


def raise_own_limit(number: int | None) -> None:
    """Raise `OwnLimitReached` if an error of socket(2) or connect(2) is about this machine."""
    if missing := OWN_LIMITS.get(number or 0):
        raise OwnLimitReached(f"this machine could not connect: {missing}")


class NotApplicable(Exception):  # noqa: N818 - an outcome of a check, not an error of ours
    """The check makes no sense here; the message says why."""
