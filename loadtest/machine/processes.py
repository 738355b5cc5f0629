"""Processes of this machine as /proc shows them: their parents, and the CPU time they used."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from echoserver.system.schedstat import ThreadTime, thread_time
from echoserver.terminal import printable

_TICKS = os.sysconf("SC_CLK_TCK")  # a second
_TICK_NS = 10**9 // _TICKS
_PAGE = os.sysconf("SC_PAGE_SIZE")
_INTERPRETERS = ("python", "pypy", "node", "ruby", "perl", "java", "sh", "bash", "dash")


class Key(NamedTuple):
    """The identity of a process: its number may be given to another one later."""

    pid: int
    start: int
    """When it started, in clock ticks since boot."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process at one moment."""

    key: Key
    parent: int
    zombie: bool
    name: str
    threads: int
    rss_bytes: int
    waited_ns: int
    """CPU time of the children that it has waited for, and of theirs in turn."""

    @property
    def pid(self) -> int:
        """The process number."""
        return self.key.pid


class Table(NamedTuple):
    """All processes of this machine at one moment."""

    pids: frozenset[int]
    """The process numbers, listed before any process was read."""
    processes: dict[int, Process]
    """The processes that still existed when they were read."""


def table() -> Table:
    """Return all processes of this machine."""
    pids: frozenset[int] = frozenset()
    with suppress(OSError):  # a system without it
        pids = frozenset(int(one) for one in os.listdir("/proc") if one.isdigit())  # noqa: PTH208 - a tenth of the time
    processes = ((pid, process(pid)) for pid in pids)
    return Table(pids, {pid: one for pid, one in processes if one is not None})


def process(pid: int) -> Process | None:
    """Return a process; None if it no longer exists."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    before, _, after = text.rpartition(")")
    fields = after.split()  # from the third on, as proc(5) numbers them
    return Process(
        Key(pid, int(fields[19])),
        int(fields[1]),
        fields[0] in {"Z", "X"},
        printable(before.partition("(")[2]),
        int(fields[17]),
        int(fields[21]) * _PAGE,
        (int(fields[13]) + int(fields[14])) * _TICK_NS,
    )


def descendants(roots: Iterable[int], snapshot: Table) -> set[int]:
    """Return the numbers of processes and of all their descendants."""
    children: dict[int, list[int]] = {}
    for one in snapshot.processes.values():
        children.setdefault(one.parent, []).append(one.pid)
    tree: set[int] = set()
    pending = [pid for pid in roots if pid in snapshot.processes]
    while pending:
        pid = pending.pop()
        if pid not in tree:
            tree.add(pid)
            pending += children.get(pid, ())
    return tree


def ancestors(pid: int, snapshot: Table) -> set[int]:
    """Return the numbers of a process and of all its ancestors."""
    chain: set[int] = set()
    while pid in snapshot.processes and pid not in chain:
        chain.add(pid)
        pid = snapshot.processes[pid].parent
    return chain


def now_in_ticks() -> int:
    """Return the time as `Key.start` counts it; 0 where that is not known."""
    with suppress(OSError):
        return int(float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) * _TICKS)
    return 0


def cpu_ns(pid: int) -> int:
    """Return the CPU time that a process has used, with those of its threads that have ended.

    A zombie still has it. The clock is what clock_getcpuclockid(3) returns, which Python does not
    have (CPUCLOCK_SCHED of the kernel's include/linux/posix-timers.h). It counts nanoseconds;
    utime counts ticks of 10 ms and truncates, so hundreds of children that each did a little would
    read as nothing.

    Raises:
        OSError: The process is gone.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def thread_times(pid: int) -> dict[int, ThreadTime]:
    """Return the times of each living thread of a process (schedstat)."""
    times: dict[int, ThreadTime] = {}
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):
                times[int(task.name)] = thread_time(task)
    return times


def program(one: Process) -> str:
    """Return the name of a process; of an interpreter, with the name of its script."""
    if not one.name.startswith(_INTERPRETERS):
        return one.name
    with suppress(OSError):
        text = Path(f"/proc/{one.pid}/cmdline").read_text(encoding="utf-8", errors="replace")
        _, *words = text.split("\0")
        script = next(
            (number for number, word in enumerate(words) if word[:1] not in {"", "-"}), None
        )
        if script is not None:
            module = "-m " if script and words[script - 1] == "-m" else ""
            inline = script and words[script - 1] in {"-c", "-e"}
            name = "" if inline else printable(Path(words[script]).name)
            return f"{one.name} {module}{name}".strip()
    return one.name


def signal_name(number: int) -> str:
    """Return what a signal is called; of a number without a name, ``signal 65``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
