"""Numbers as people type them."""

import math
import re

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>us|ms|s|m|h)?", re.ASCII)
_LONGEST = 1e8  # about three years: beyond it, a kernel's struct timeval may not follow


def parse_duration(text: str | float) -> float:
    """Return the seconds that `text` names: ``30``, ``"2.5"``, ``"500ms"``, ``"5s"``, ``"2m"``.

    Raises:
        ValueError: `text` is no such number; the message completes "X must be ...".
    """
    if isinstance(text, str):
        match = _DURATION.fullmatch(text.strip())
        seconds = float(match["number"]) * _SECONDS[match["unit"] or "s"] if match else math.nan
    else:
        seconds = float(text)
    if not 0 <= seconds <= _LONGEST:
        raise ValueError("a number of seconds from 0 up, or a duration such as 500ms, 5s or 2m")
    return seconds
