"""Exceptions that end a conversation early."""

from collections.abc import Callable
from typing import TypeVar

from echoserver.outcome import Outcome

_T = TypeVar("_T")


class ConversationEnded(Exception):  # noqa: N818 - not an error
    """The conversation is over, perhaps before it began; the stream is still to be closed."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class ConnectionLost(Exception):  # noqa: N818 - caused by the peer
    """The connection is lost, so the stream cannot be closed properly.

    Args:
        outcome: Why the connection ended.
        reason: The reason to log; empty where the outcome is enough.
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
    """Call a method of a handler, and return its result.

    Raises:
        HandlerFailed: The method raised an exception. Even SystemExit ends one connection only.
    """
    try:
        return method()
    except BaseException as error:
        raise HandlerFailed(error) from error
