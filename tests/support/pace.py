"""How slow this machine is at the moment: no test assumes a fast one, or one that is quiet."""

import os
import time

# What `_unit` takes on an idle machine of two cores from 2020.
_REFERENCE = 0.006  # seconds
_UNITS = 5


def within(elapsed: float, seconds: float) -> bool:
    """Tell whether something took less than `seconds` of an idle machine.

    Args:
        elapsed: What it took here, in seconds of the clock.
        seconds: A bound with room to spare. Where it is missed, it is stretched by how much longer
            a piece of work takes here now, or by how many wanted a core in the last minute.
    """
    return elapsed < seconds or elapsed < seconds * slowness()


def slowness() -> float:
    """Return how many times longer work takes here than on an idle machine; at least 1."""
    crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    return max(1.0, crowd, max(_unit() for _ in range(_UNITS)) / _REFERENCE)


def _unit() -> float:
    begun = time.perf_counter()
    sum(number * number for number in range(100_000))
    return time.perf_counter() - begun
