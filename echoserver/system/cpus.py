"""Which CPUs a server's processes may run on (sched_setaffinity(2))."""

import os
import re

Affinity = tuple[int, ...] | str
"""``off``, ``auto``, or CPU numbers."""


def parse_affinity(value: object) -> Affinity:
    """Read ``off``, ``auto`` or a list of CPUs as ``0,2-3``.

    Raises:
        ValueError: It is none of these; the message completes "--affinity must be ...".
    """
    if isinstance(value, str) and value in {"off", "auto"}:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, tuple | list):
        value = ",".join(str(item) for item in value)
    cpus: list[int] = []
    if isinstance(value, str):
        for part in value.split(","):
            if not (match := re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)):
                break
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                break
            cpus += range(first, last + 1)
        else:
            return tuple(dict.fromkeys(cpus))
    raise ValueError("off, auto, or CPU numbers such as 0,2-3")


# Read at import, before this process confines itself to some of them.
_ALLOWED = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def unusable_cpus(affinity: Affinity) -> list[int]:
    """Return the listed CPUs that this process was not allowed to use when it started."""
    return [] if isinstance(affinity, str) else [cpu for cpu in affinity if cpu not in _ALLOWED]


def pin(affinity: Affinity, number: int) -> None:
    """Pin this process to the CPU of worker `number` (from 0), unless `affinity` is ``off``."""
    if affinity != "off":
        cpus = sorted(_ALLOWED) if isinstance(affinity, str) else affinity
        os.sched_setaffinity(0, {cpus[number % len(cpus)]})
