"""What /proc tells of a server: its processes, what they hold, and its sockets (proc(5))."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path

import psutil

from loadtest.machine.sockets import TCP_TABLES, endpoints
from loadtest.machine.usage import pss_bytes

_MOST_SHOWN = 6  # processes
_STATES = {
    "01": "ESTABLISHED",
    "02": "SYN_SENT",
    "03": "SYN_RECV",
    "04": "FIN_WAIT1",
    "05": "FIN_WAIT2",
    "06": "TIME_WAIT",
    "07": "CLOSE",
    "08": "CLOSE_WAIT",
    "09": "LAST_ACK",
    "0A": "LISTEN",
    "0B": "CLOSING",
}
_MEANING = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk",
    "T": "stopped",
    "t": "stopped",
    "Z": "a zombie: ended, and its parent has not waited for it",
}


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a server holds. None: it cannot be told."""

    descriptors: int | None
    threads: int
    processes: int
    """Without zombies."""
    zombies: int
    mebibytes: int | None
    """Of memory, without pages of files."""

    def __str__(self) -> str:
        counts = zip(
            ("descriptors", "threads", "processes", "zombies", "MiB"), astuple(self), strict=True
        )
        return ", ".join(f"{name}: {number}" for name, number in counts if number is not None)


HELD = (
    "descriptors",
    "threads",
    "processes",
    "zombies (children that ended and were not waited for)",
    "MiB of memory",
)
"""What `Holdings` counts, in its order."""


def below(pid: int) -> list[psutil.Process]:
    """Return all processes below one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def holdings(processes: list[psutil.Process]) -> Holdings:
    """Count what processes hold."""
    descriptors: int | None = 0
    threads = living = zombies = 0
    for process in processes:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                zombies += 1
                continue
            living += 1
            threads += process.num_threads()
        except psutil.NoSuchProcess:
            continue
        try:
            if descriptors is not None:
                descriptors += process.num_fds()
        except psutil.AccessDenied:  # it runs as another user
            descriptors = None
        except psutil.Error:
            pass
    used = pss_bytes(processes, files=False)
    return Holdings(descriptors, threads, living, zombies, used and used >> 20)


def on_cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return how long threads have been running, or ready and waiting for a CPU.

    With the waiting, a thread that spins counts fully on a busy machine, and within a quota, too.
    """
    total = 0
    for process in processes:
        with suppress(OSError):
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                with suppress(OSError, IndexError, ValueError):
                    ran, waited = (task / "schedstat").read_bytes().split()[:2]
                    total += int(ran) + int(waited)
    return total / 1e9


def _ends(port: int) -> Iterator[tuple[str, int]]:
    """Yield the state of each socket on a port, by its name, and what is queued there."""
    for one in chain.from_iterable(map(endpoints, TCP_TABLES)):
        if one.port == port:
            yield _STATES.get(one.state, one.state), one.queued


def connected(port: int) -> int:
    """Return how many connections the server on a port has not closed yet."""
    return sum(name in {"ESTABLISHED", "CLOSE_WAIT"} for name, _ in _ends(port))


def describe(processes: list[psutil.Process]) -> list[str]:
    """Say what each of the first processes is and does."""
    lines = []
    for process in processes[:_MOST_SHOWN]:
        with suppress(psutil.Error, OSError, IndexError):
            stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii", errors="replace")
            letter = stat.rpartition(")")[2].split()[0]
            does = _MEANING.get(letter, letter)
            if letter != "Z":
                threads = process.num_threads()
                does += f", {threads} thread{'s' * (threads != 1)}"
                with suppress(psutil.AccessDenied):
                    does += f", {process.num_fds()} descriptors"
            lines.append(f"process {process.pid} ({process.name()}): {does}")
    if len(processes) > _MOST_SHOWN:
        zombies = holdings(processes).zombies
        lines.append(
            f"and {len(processes) - _MOST_SHOWN} more; {len(processes)} in all, {zombies} zombies"
        )
    return lines


def sockets(port: int) -> list[str]:
    """Say in which states the server's ends of its connections are, and how long its queue is."""
    states: Counter[str] = Counter()
    queued = unread = 0
    for name, waiting in _ends(port):
        if name == "LISTEN":
            queued += waiting
            continue
        unread += waiting > 0
        states[name] += 1
    lines = []
    if states:
        shown = ", ".join(f"{count} {name}" for name, count in sorted(states.items()))
        lines.append(f"the server's ends of connections: {shown}")
    if unread:
        lines.append(f"connections with bytes that the server has not read: {unread}")
    if queued:
        lines.append(f"connections that wait to be accepted: {queued}")
    return lines


def busy_share(server_tree: list[psutil.Process], seconds: float) -> float:
    """Watch processes for a while; return how much they ran or wanted to, 1.0 being one CPU."""
    begun, before = time.monotonic(), on_cpu_seconds(server_tree)
    time.sleep(seconds)
    return (on_cpu_seconds(server_tree) - before) / (time.monotonic() - begun)
