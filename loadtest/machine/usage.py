"""What a server's processes use while it is measured: CPU time, memory, threads."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loadtest.machine.processes import (
    ThreadTime,
)

_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Peaks:
    """The highest values seen."""

    rss_bytes: int = 0
    """Resident memory summed over the processes; pages that forks share count for each."""
    threads: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Watched:
    """Whose figures a sampler's are."""

    programs: Mapping[str, int]
    """How many processes of which program, when they were most."""
    by_socket: bool
    """They were found by the listening socket that they hold, and not started by us."""

    def __str__(self) -> str:
        number = sum(self.programs.values())
        names = sorted(self.programs.items(), key=lambda item: -item[1])
        if len(names) == 1:
            return f"{number} process{'es' * (number > 1)} of {names[0][0]}"
        return f"{number} processes: {', '.join(f'{count} of {name}' for name, count in names)}"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time that a server's processes have used."""

    at: float
    """When, as `time.monotonic` counts."""
    seconds: float = 0.0
    threads: Mapping[int, ThreadTime] = field(default_factory=dict)
    """Of each living thread, by its number."""

    def busiest_since(self, before: "Usage") -> float:
        """Return the CPU time of the thread that used most since, as a share of one core."""
        return self._most_since(before, lambda time: time.ran)

    def longest_wait_since(self, before: "Usage") -> float:
        """Return for which share of the time since a thread could have run, and got no CPU."""
        return self._most_since(before, lambda time: time.waited)

    def _most_since(self, before: "Usage", part: Callable[[ThreadTime], int]) -> float:
        none = ThreadTime()
        passed = self.at - before.at
        most = max(
            (part(now) - part(before.threads.get(tid, none)) for tid, now in self.threads.items()),
            default=0,
        )
        return most / 1e9 / passed if passed else 0.0


class _Numbered(Protocol):
    @property
    def pid(self) -> int: ...


def pss_bytes(processes: Iterable[_Numbered], *, files: bool) -> int | None:
    """Return the memory of processes, each shared page counted once; None where it cannot be told.

    Args:
        processes: Those that live.
        files: With the pages of files, such as libraries.
    """
    wanted = ("Pss:",) if files else ("Pss_Anon:", "Pss_Shmem:")
    total = 0
    for process in processes:
        with suppress(OSError, IndexError):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(wanted):
                    total += int(line.split()[1]) * 1024
    return total or None


def busy_seconds(cpus: Iterable[int], *, interrupts: bool = True) -> float:
    """Return how long CPUs have not been idle so far, by all processes (proc(5), /proc/stat).

    Args:
        cpus: Their numbers.
        interrupts: With the time for which they served interrupts, which is nobody's.
    """
    wanted = {f"cpu{number}" for number in cpus}
    ticks = 0
    with suppress(OSError, ValueError):
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *times = line.split()
            if name in wanted:
                user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, times)
                ticks += user + nice + system + steal + (irq + softirq) * interrupts
    return ticks * _TICK_NS / 1e9
