"""How conversations end before their stream does."""

from collections.abc import Callable
from typing import TypeVar

from echoserver.outcome import Outcome

_T = TypeVar("_T")


class ConversationEnded(Exception):  # noqa: N818 - no error
    """The conversation is over, perhaps before it began; the stream is still to be closed."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class ConnectionLost(Exception):  # noqa: N818 - the peer's doing
    """The connection is over: there is nobody left to close the stream with.

    Args:
        outcome: Why it ended.
        reason: What is to be said of it; nothing, where the outcome says it all.
    """

    def __init__(self, outcome: Outcome, reason: str = "") -> None:
        super().__init__()
        self.outcome, self.reason = outcome, reason


class HandlerFailed(Exception):  # noqa: N818 - it wraps the handler's own error
    """A handler raised an exception."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def call_handler(method: Callable[[], _T]) -> _T:
    """Return what a method of a handler returns.

    Raises:
        HandlerFailed: It raised something; SystemExit, too, is one connection's failure.
    """
    try:
        return method()
    except BaseException as error:
        raise HandlerFailed(error) from error
