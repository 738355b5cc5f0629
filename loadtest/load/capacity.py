"""The capacity of the load clients on this machine: saved when measured, and read back."""

import hashlib
import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from errno import ENOENT
from pathlib import Path

from loadtest.machine.environment import cpu_model, has_gil
from loadtest.output import write


@dataclass(frozen=True, slots=True)
class Calibration:
    """The capacity of an engine, as it was measured."""

    capacity: float
    """Messages per second of one process with a core of its own."""
    server: str
    """The server that it was measured against."""
    of_c: float | None = None
    """As a share of what a client in C that verifies nothing reached in the same rounds."""


def cache_file() -> Path:
    """Return where calibrations are kept: one file for each machine and interpreter.

    Raises:
        OSError: The user has no home directory.
    """
    gil = has_gil()
    machine = f"{platform.node()}|{cpu_model()}|{platform.release()}|{sys.version}|{gil}"
    key = hashlib.sha256(machine.encode()).hexdigest()[:16]
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise FileNotFoundError(ENOENT, "this user has no home directory") from None
    return Path(base) / "echoload" / f"calibration-{key}.json"


def load_calibrations() -> dict[str, Calibration]:
    """Return the calibrations of this machine, by engine."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        entries = json.loads(cache_file().read_text(encoding="utf-8"))
        return {name: Calibration(**value) for name, value in entries.items()}
    return {}


def save_calibrations(calibrations: dict[str, Calibration]) -> Path:
    """Save calibrations for later; return where.

    Raises:
        OSError: They cannot be saved.
    """
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        name: asdict(replace(one, capacity=round(one.capacity, 1)))
        for name, one in (load_calibrations() | calibrations).items()
    }
    write(path, json.dumps(values, indent=2) + "\n")
    return path
