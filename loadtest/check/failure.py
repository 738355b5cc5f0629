"""How a check ends that is not passed."""

from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.check.evidence import Difference


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
def failure_context(circumstances: str) -> Iterator[None]:
    """Put before the message of a failure in the block under which circumstances it came."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{circumstances}{failure}", failure.difference) from None


class NoEchoServer(Failure):
    """It does something else altogether; further checks would tell nothing."""


class NotApplicable(Exception):  # noqa: N818 - an outcome of a check, no error of ours
    """The check makes no sense here; the message says why."""
