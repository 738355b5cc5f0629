"""The machine and software of a measurement, without which its numbers cannot be compared."""

import os
import platform
import resource
import shlex
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from echoserver.system.sockets import somaxconn

_PACKAGES = (
    "echoserver",
    "gevent",
    "greenlet",
    "click",
    "structlog",
    "rich",
    "psutil",
    "hdrhistogram",
)


class ThisPython(TypedDict):
    """The interpreter that runs echoload."""

    implementation: str
    version: str
    compiler: str
    gil: bool


class Pinning(TypedDict):
    """The CPUs of server and client; empty: all."""

    server: list[int]
    client: list[int]


class Limits(TypedDict):
    """What the system allows: soft and hard limits; -1: unlimited."""

    open_files: list[int]
    processes: list[int]
    somaxconn: int | None


class Environment(TypedDict):
    """The machine and software of a measurement."""

    time: str
    command: str
    interpreter: ThisPython
    kernel: str
    machine: str
    cpu: str | None
    cpus: int | None
    affinity: list[int]
    pinning: Pinning
    load_average: float
    """Of the last minute, when the measurement began."""
    limits: Limits
    versions: dict[str, str | None]


def has_gil() -> bool:
    """Tell whether this Python runs one thread at a time."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def describe(pinning: tuple[list[int], list[int]]) -> Environment:
    """Return the environment as it goes into a result file.

    Args:
        pinning: The CPUs of server and client.
    """
    gil = has_gil()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["echoload", *sys.argv[1:]]),
        "interpreter": {
            "implementation": platform.python_implementation(),
            "version": platform.python_version(),
            "compiler": platform.python_compiler(),
            "gil": gil,
        },
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "pinning": {"server": pinning[0], "client": pinning[1]},
        "load_average": round(os.getloadavg()[0], 2),
        "limits": {
            "open_files": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
            "processes": list(resource.getrlimit(resource.RLIMIT_NPROC)),
            "somaxconn": somaxconn(),
        },
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def cpu_model() -> str | None:
    """Return the model name of this machine's CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def number_in(path: str) -> int | None:
    """Return the number in a file of /proc or /sys; None if there is none."""
    with suppress(OSError, ValueError):
        return int(Path(path).read_text(encoding="ascii"))
    return None


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None
