"""Work that computes: pure Python, for as long as this machine takes for so many milliseconds."""

import time

from echoserver.handlers import Handler

_TRIAL = 20_000  # turns
_TRIALS = 15
_LONGEST = 60_000.0  # milliseconds


class CpuHandler(Handler):
    """Answer with the same bytes, after computing.

    What is done is fixed, and not for how long: as much as took `milliseconds` on a core of its
    own, when this module was imported. Where the core or the GIL is shared, it takes longer.

    Args:
        milliseconds: CPU time that every message takes.

    Raises:
        ValueError: `milliseconds` is negative, or more than a minute.
    """

    def __init__(self, milliseconds: float = 5.0) -> None:
        if not 0 <= milliseconds <= _LONGEST:
            raise ValueError(f"cannot compute for {milliseconds:g} milliseconds")
        self._turns = int(milliseconds * _TURNS_PER_MILLISECOND)

    def receive(self, data: bytes) -> bytes:
        """Compute, then return `data`."""
        _compute(self._turns)
        return data


def _timed() -> float:
    begun = time.thread_time_ns()
    _compute(_TRIAL)
    return (time.thread_time_ns() - begun) / 1e6


def _compute(turns: int) -> int:
    value = 1
    for _ in range(turns):
        value = value * 1103515245 + 12345 & 0x7FFFFFFF  # a linear congruential generator
    return value


# How much this machine computes: the best of several trials. Forked processes inherit it.
_TURNS_PER_MILLISECOND = _TRIAL / min(_timed() for _ in range(_TRIALS))
