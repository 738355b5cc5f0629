"""What the processes of a server use while it is measured: CPU time, memory, threads."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from echoserver.system.schedstat import ThreadTime

_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Peaks:
    """The highest values seen."""

    rss_bytes: int = 0
    """Resident memory summed over the processes; pages that forks share count for each."""
    threads: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class WatchedProcesses:
    """The processes that a sampler's figures are of."""

    programs: Mapping[str, int]
    """Processes by the name of their program, when there were most of them."""
    by_socket: bool
    """We did not start them: they were found by the listening socket that they hold."""

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
    """The time of the sample, as `time.monotonic` counts."""
    seconds: float = 0.0
    threads: Mapping[int, ThreadTime] = field(default_factory=dict)
    """The times of each living thread, by its number."""

    def busiest_since(self, before: "Usage") -> float:
        """Return the CPU time since `before` of the busiest thread, as a share of one core."""
        return self._most_since(before, lambda time: time.ran)

    def longest_wait_since(self, before: "Usage") -> float:
        """Return the longest time since `before` that a thread waited for a CPU, as a share."""
        return self._most_since(before, lambda time: time.waited)

    def _most_since(self, before: "Usage", attribute: Callable[[ThreadTime], int]) -> float:
        none = ThreadTime()
        elapsed = self.at - before.at
        most = max(
            (
                attribute(now) - attribute(before.threads.get(tid, none))
                for tid, now in self.threads.items()
            ),
            default=0,
        )
        return most / 1e9 / elapsed if elapsed else 0.0


class _Numbered(Protocol):
    @property
    def pid(self) -> int: ...


def pss_bytes(processes: Iterable[_Numbered], *, files: bool) -> int | None:
    """Return the memory of processes, each shared page counted once; None if unknown.

    Args:
        processes: The living processes.
        files: Count the pages of files, such as libraries, as well.
    """
    prefixes = ("Pss:",) if files else ("Pss_Anon:", "Pss_Shmem:")
    total = 0
    for process in processes:
        with suppress(OSError, IndexError):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(prefixes):
                    total += int(line.split()[1]) * 1024
    return total or None


def busy_seconds(cpus: Iterable[int], *, interrupts: bool = True) -> float:
    """Return how long CPUs have not been idle so far, by all processes (proc(5), /proc/stat).

    Args:
        cpus: The numbers of the CPUs.
        interrupts: Count the time for which they served interrupts, which belongs to no process.
    """
    names = {f"cpu{number}" for number in cpus}
    ticks = 0
    with suppress(OSError, ValueError):
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *times = line.split()
            if name in names:
                user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, times)
                ticks += user + nice + system + steal + (irq + softirq) * interrupts
    return ticks * _TICK_NS / 1e9
