"""Work that waits: a database, another server, a disk."""

from echoserver.handlers import Handler, Step
from echoserver.handlers import Sleep as Pause


class SleepHandler(Handler):
    """Answer with the same bytes, after a while.

    Args:
        seconds: How long the answer to every message is delayed.

    Raises:
        ValueError: `seconds` is negative, or too long for a `Sleep`.
    """

    def __init__(self, seconds: float = 0.1) -> None:
        self._pause = Pause(seconds)

    def receive(self, data: bytes) -> tuple[Step, ...]:
        """Return a pause, then `data`."""
        return self._pause, data
