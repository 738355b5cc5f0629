"""Work that computes: pure Python, as much as takes a number of milliseconds on this machine."""

import time

from echoserver.handlers import Handler

_TURNS_PER_TRIAL = 20_000
_TRIALS = 15
_MAX_MILLISECONDS = 60_000.0


class CpuHandler(Handler):
    """Answer with the same bytes, after computing.

    The amount of work is fixed, and not its duration: it is what took `milliseconds` on a core of
    its own when this module was imported. Where the core or the GIL is shared, it takes longer.

    Args:
        milliseconds: CPU time that every message takes.

    Raises:
        ValueError: `milliseconds` is negative, or more than a minute.
    """

    def __init__(self, milliseconds: float = 5.0) -> None:
        if not 0 <= milliseconds <= _MAX_MILLISECONDS:
            raise ValueError(f"cannot compute for {milliseconds:g} milliseconds")
        self._turns = int(milliseconds * _TURNS_PER_MILLISECOND)

    def receive(self, data: bytes) -> bytes:
        """Compute, then return `data`."""
        _compute(self._turns)
        return data


def _time_trial() -> float:
    start_ns = time.thread_time_ns()
    _compute(_TURNS_PER_TRIAL)
    return (time.thread_time_ns() - start_ns) / 1e6


def _compute(turns: int) -> int:
    value = 1
    for _ in range(turns):
        value = value * 1103515245 + 12345 & 0x7FFFFFFF  # a linear congruential generator
    return value


# The speed of this machine: the best of several trials. Forked processes inherit it.
_TURNS_PER_MILLISECOND = _TURNS_PER_TRIAL / min(_time_trial() for _ in range(_TRIALS))
