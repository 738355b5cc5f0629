"""Numbers as people type them."""

import math
import re

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>us|ms|s|m|h)?", re.ASCII)
# Several parts, the largest unit first, and a fraction only in the last: 1m30s, 1h2m3.5s.
_PART = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>us|ms|s|m|h)\s*", re.ASCII)
_MAX_SECONDS = 1e8  # about three years: beyond it, a kernel's struct timeval may not follow

_PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<prefix>[kKMG]?i?)B?", re.ASCII)
_MAX_QUANTITY = 2**63


def parse_duration(text: str | float) -> float:
    """Return the seconds that `text` names: ``30``, ``"2.5"``, ``"500ms"``, ``"2m"``, ``"1m30s"``.

    Raises:
        ValueError: `text` is not such a number; the message completes "X must be ...".
    """
    if isinstance(text, str):
        match = _DURATION.fullmatch(text.strip())
        seconds = (
            float(match["number"]) * _SECONDS[match["unit"] or "s"]
            if match
            else _sum_of_parts(text.strip())
        )
    else:
        seconds = float(text)
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError("a number of seconds from 0 up, or a duration such as 500ms, 5s or 2m")
    return seconds


def _sum_of_parts(text: str) -> float:
    """Return the seconds of a duration in several units; NaN if the text is not a duration."""
    seconds, previous_unit, position = 0.0, math.inf, 0
    while match := _PART.match(text, position):
        unit = _SECONDS[match["unit"]]
        last = match.end() == len(text)
        if unit >= previous_unit or not (last or match["number"].isdecimal()):
            return math.nan
        seconds += float(match["number"]) * unit
        previous_unit, position = unit, match.end()
    return seconds if text and position == len(text) else math.nan


def parse_quantity(text: str | float) -> float:
    """Return the number that `text` names: ``400``, ``"5k"``, ``"1.5M"``, ``"64KiB"``.

    k, M and G are powers of 1000 (SI), Ki, Mi and Gi of 1024 (IEC 80000-13).

    Raises:
        ValueError: `text` is not such a number; the message completes "X must be ...".
    """
    value = math.nan
    if not isinstance(text, str):
        value = float(text)
    elif match := _QUANTITY.fullmatch(text.strip()):
        prefix = match["prefix"]
        prefix = "k" if prefix == "K" else prefix
        value = float(match["number"]) * _PREFIXES.get(prefix, math.nan)
    if not 0 <= value <= _MAX_QUANTITY:
        raise ValueError("a number from 0 up, such as 400, 5k or 64KiB")
    return value


def parse_whole(text: str | float) -> int:
    """Return the whole number that `text` names; see `parse_quantity`.

    Raises:
        ValueError: `text` is not such a number; the message completes "X must be ...".
    """
    value = parse_quantity(text)
    if value != int(value):
        raise ValueError("a whole number, such as 400, 5k or 64KiB")
    return int(value)
