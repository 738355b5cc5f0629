"""The back-off between restarts of a worker that keeps failing."""

_FIRST_PAUSE, _MAX_PAUSE = 0.05, 5.0  # seconds


class BackOff:
    """The pauses of each worker, each twice as long as the one before, up to 5 seconds."""

    def __init__(self) -> None:
        self._pauses: dict[int, float] = {}  # number of a worker → seconds

    def __contains__(self, number: int) -> bool:
        return number in self._pauses

    def next_pause(self, number: int) -> float:
        """Return how many seconds to wait after one more failure."""
        pause = min(self._pauses.get(number, 0.0) * 2 or _FIRST_PAUSE, _MAX_PAUSE)
        self._pauses[number] = pause
        return pause

    def note_end(self, number: int) -> None:
        """Record the end of a worker that had served, so that its next failure is its first."""
        self._pauses[number] = 0.0

    def reset(self, number: int) -> None:
        """Forget a worker's failures."""
        self._pauses.pop(number, None)
