"""What /proc tells of a server: its processes, what they hold, and its sockets (proc(5))."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path

import psutil

from loadtest.machine.processes import thread_times
from loadtest.machine.sockets import TCP_TABLES, endpoints
from loadtest.machine.usage import pss_bytes

_MAX_SHOWN = 6  # processes
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
    """What a server holds; None: unknown."""

    descriptors: int | None
    threads: int
    processes: int
    """Processes, without zombies."""
    zombies: int
    mebibytes: int | None
    """Memory, without pages of files."""

    def __str__(self) -> str:
        counts = zip(
            ("descriptors", "threads", "processes", "zombies", "MiB"), astuple(self), strict=True
        )
        return ", ".join(f"{name}: {number}" for name, number in counts if number is not None)


HOLDING_NAMES = (
    "descriptors",
    "threads",
    "processes",
    "zombies (children that ended and were not waited for)",
    "MiB of memory",
)
"""The names of the counts in `Holdings`, in the same order."""


def below(pid: int) -> list[psutil.Process]:
    """Return all descendants of a process."""
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
    memory_bytes = pss_bytes(processes, files=False)
    return Holdings(descriptors, threads, living, zombies, memory_bytes and memory_bytes >> 20)


def on_cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return how long threads have been running, or ready and waiting for a CPU.

    Because waiting counts, too, a thread that spins counts fully, even on a busy machine or within
    a quota.
    """
    total = 0
    for process in processes:
        with suppress(OSError):
            for time in thread_times(process.pid).values():
                total += time.ran + time.waited
    return total / 1e9


def reads_standard_input(processes: list[psutil.Process]) -> bool:
    """Tell whether a thread waits in a system call for its standard input, which is a pipe.

    What the kernel shows of it: the first argument of the call (/proc/PID/syscall, proc(5)), which
    is descriptor 0, and the function in which it waits (/proc/PID/wchan), ``pipe_read`` or
    ``anon_pipe_read``. One that polls several descriptors cannot be told.
    """
    for process in processes:
        with suppress(OSError):
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                with suppress(OSError):
                    waits_in_pipe = "pipe_read" in (task / "wchan").read_text()
                    call = (task / "syscall").read_text().split()
                    if waits_in_pipe and call[1:2] == ["0x0"]:
                        return True
    return False


def _socket_states(port: int) -> Iterator[tuple[str, int]]:
    """Yield the name of the state of each socket on a port, and what is queued there."""
    for one in chain.from_iterable(map(endpoints, TCP_TABLES)):
        if one.port == port:
            yield _STATES.get(one.state, one.state), one.queued


def open_connections(port: int) -> int:
    """Return how many connections the server on a port has not closed yet."""
    return sum(name in {"ESTABLISHED", "CLOSE_WAIT"} for name, _ in _socket_states(port))


def unclosed(port: int) -> int:
    """Return how many clients have ended their connection, and the server has not (CLOSE_WAIT)."""
    return sum(name == "CLOSE_WAIT" for name, _ in _socket_states(port))


def describe(processes: list[psutil.Process]) -> list[str]:
    """Return a line for each of the first processes: what it is, and what it does."""
    lines = []
    for process in processes[:_MAX_SHOWN]:
        with suppress(psutil.Error, OSError, IndexError):
            stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii", errors="replace")
            letter = stat.rpartition(")")[2].split()[0]
            activity = _MEANING.get(letter, letter)
            if letter != "Z":
                threads = process.num_threads()
                activity += f", {threads} thread{'s' * (threads != 1)}"
                with suppress(psutil.AccessDenied):
                    activity += f", {process.num_fds()} descriptors"
            lines.append(f"process {process.pid} ({process.name()}): {activity}")
    if len(processes) > _MAX_SHOWN:
        zombies = holdings(processes).zombies
        lines.append(
            f"and {len(processes) - _MAX_SHOWN} more; {len(processes)} in all, {zombies} zombies"
        )
    return lines


def sockets(port: int) -> list[str]:
    """Return lines on the states of the server's connections, and on the length of its queue."""
    states: Counter[str] = Counter()
    queued = unread = 0
    for name, waiting in _socket_states(port):
        if name == "LISTEN":
            queued += waiting
            continue
        unread += waiting > 0
        states[name] += 1
    lines = []
    if states:
        state_counts = ", ".join(f"{count} {name}" for name, count in sorted(states.items()))
        lines.append(f"the server's ends of connections: {state_counts}")
    if unread:
        lines.append(f"connections with bytes that the server has not read: {unread}")
    if queued:
        lines.append(f"connections that wait to be accepted: {queued}")
    return lines


def busy_share(server_tree: list[psutil.Process], seconds: float) -> float:
    """Return the CPU share that processes used or waited for in `seconds`; 1.0 is one CPU."""
    start, cpu_before = time.monotonic(), on_cpu_seconds(server_tree)
    time.sleep(seconds)
    return (on_cpu_seconds(server_tree) - cpu_before) / (time.monotonic() - start)
