"""What a server's whole process tree uses: CPU time, memory, threads, processes."""

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from echoserver.addresses import EVERY_ADDRESS, UNIX, is_unix

_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
_PERIOD = 0.5  # seconds between two looks at memory; each costs the client's core some time


@dataclass(slots=True)
class Peaks:
    """The highest values seen."""

    rss_bytes: int = 0
    """Resident memory summed over the processes; pages that forks share count for each."""
    threads: int = 0
    processes: int = 0


@dataclass(slots=True)
class Usage:
    """CPU time that a process tree has used."""

    at: float
    """When, as `time.monotonic` counts."""
    dead_ns: int = 0
    """By children that were waited for."""
    living_ns: int = 0
    """By the processes that live, with those of their threads that have ended."""
    threads_ns: dict[int, int] = field(default_factory=dict)
    """By each living thread."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return (self.dead_ns + self.living_ns) / 1e9

    def busiest_since(self, before: "Usage") -> float:
        """Return the CPU time of the thread that used most since, as a share of one core."""
        used = (ns - before.threads_ns.get(tid, 0) for tid, ns in self.threads_ns.items())
        passed = self.at - before.at
        return max(used, default=0) / 1e9 / passed if passed else 0.0


def _cpu_clock(pid: int) -> int:
    """Return the clock of a process's CPU time, which its threads' ends do not set back.

    (What clock_getcpuclockid(3) returns, which Python does not have; CPUCLOCK_SCHED of the kernel's
    include/linux/posix-timers.h.)
    """
    return (~pid << 3) | 2


def pss_bytes(processes: Iterable[psutil.Process], *, files: bool) -> int | None:
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


class Sampler:
    """Watches the process `pid` and its descendants."""

    def __init__(self, pid: int) -> None:
        self.peaks = Peaks()
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the tree has used so far, its dead members included."""
        return self.usage().seconds

    def usage(self) -> "Usage":
        """Return the CPU time that the tree has used so far.

        The living are asked for it in nanoseconds (clock_getcpuclockid(3), schedstat): utime
        counts ticks of 10 ms and truncates, so hundreds of children that each did a little would
        read as nothing. Of those that were waited for, the kernel keeps the sum exactly, and shows
        it in ticks (proc(5)).
        """
        found = Usage(time.monotonic())
        for process in self._tree():
            with suppress(OSError, IndexError):
                stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii")
                after_name = stat.rpartition(")")[2].split()
                found.dead_ns += sum(map(int, after_name[13:15])) * _TICK_NS
            with suppress(OSError):
                found.living_ns += time.clock_gettime_ns(_cpu_clock(process.pid))
            with suppress(OSError):
                for task in Path(f"/proc/{process.pid}/task").iterdir():
                    with suppress(OSError):
                        used = int((task / "schedstat").read_bytes().split()[0])
                        found.threads_ns[int(task.name)] = used
        return found

    def pss_bytes(self, *, files: bool = True) -> int | None:
        """Return the memory in use, each shared page counted once; None where it cannot be told.

        Args:
            files: With the pages of files, such as libraries. Their share changes whenever any
                program that uses the same library starts or ends.
        """
        return pss_bytes(self._tree(), files=files)

    def look(self) -> None:
        """Take the present values into the peaks."""
        rss = threads = processes = 0
        for process in self._tree():
            with suppress(psutil.Error), process.oneshot():
                rss += process.memory_info().rss
                threads += process.num_threads()
                processes += 1
        peaks = self.peaks
        peaks.rss_bytes = max(peaks.rss_bytes, rss)
        peaks.threads = max(peaks.threads, threads)
        peaks.processes = max(peaks.processes, processes)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_PERIOD):
            self.look()

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []


def local_server(host: str, port: int) -> int | None:
    """Return the process that listens on a port of this machine, of several the one above all.

    None: it is on another machine, or not ours to see, or we are its children and so a part of what
    it uses.
    """
    try:
        pids = _who_has(host) if is_unix(host) else _who_listens(host, port)
        own = {os.getpid()} | _ancestors(os.getpid())
        above = [pid for pid in pids if not _ancestors(pid) & pids]
    except (OSError, psutil.Error):
        return None
    if len(above) != 1 or pids & own:
        return None
    return above[0]


def _who_listens(host: str, port: int) -> set[int]:
    """Return the processes that listen on a TCP port; none where that is another machine's."""
    addresses = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    if not addresses <= _own_addresses():
        return set()
    return {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
        and one.pid is not None
        and one.laddr
        and one.laddr.port == port
        and (one.laddr.ip in addresses or one.laddr.ip in EVERY_ADDRESS)
    }


def _who_has(host: str) -> set[int]:
    """Return the processes with a UNIX socket of that name: a server's, listening or accepted."""
    name = _shown_name(host)
    found: list[Any] = psutil.net_connections("unix")  # whose addresses are texts
    return {one.pid for one in found if one.laddr == name and one.pid is not None}


def _shown_name(host: str) -> str:
    """Return a UNIX socket's name as proc(5) shows it, where ``@`` stands for a NUL."""
    return host.removeprefix(UNIX)


def _ancestors(pid: int) -> set[int]:
    return {parent.pid for parent in psutil.Process(pid).parents()}


def _own_addresses() -> set[str]:
    return {one.address for cards in psutil.net_if_addrs().values() for one in cards}


def busy_seconds(cpus: Iterable[int]) -> float:
    """Return how long CPUs have not been idle so far, whoever used them (proc(5), /proc/stat)."""
    wanted = {f"cpu{number}" for number in cpus}
    ticks = 0
    with suppress(OSError, ValueError):
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *times = line.split()
            if name in wanted:
                user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, times)
                ticks += user + nice + system + irq + softirq + steal
    return ticks * _TICK_NS / 1e9


_LISTENING = "0A"  # TCP_LISTEN, as proc(5) writes it


@dataclass(frozen=True, slots=True)
class Endpoint:
    """This machine's end of a TCP connection, or a listening socket."""

    port: int
    state: str
    """As proc(5) writes it: ``0A`` listens."""
    queued: int
    """Bytes that nobody has read; of one that listens, connections that wait to be accepted."""


TCP_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def endpoints(table: str) -> Iterator[Endpoint]:
    """Yield what one of the `TCP_TABLES` has, first those that listen; nothing where it is not."""
    with suppress(OSError), Path(table).open(encoding="ascii") as lines:
        next(lines, "")
        for line in lines:
            _, local, _, state, queues, *_ = line.split()
            port, queued = (int(pair.rpartition(":")[2], 16) for pair in (local, queues))
            yield Endpoint(port, state, queued)


def queue_length(host: str, port: int) -> int | None:
    """Return how many connections wait to be accepted by a server of this machine.

    None: nothing listens there that this network namespace can see.
    """
    return _unix_queue(_shown_name(host)) if is_unix(host) else accept_queue(port)


_UNIX_LISTENS, _UNIX_WAITS = 0x10000, "02"  # SO_ACCEPTCON in flags; SS_CONNECTING (proc(5))


def _unix_queue(name: str) -> int | None:
    """Return how many connections wait to be accepted by the UNIX socket of that name.

    One that waits has a socket of the server's, with its name, that no process has yet.
    """
    listens, waiting = False, 0
    with suppress(OSError), Path("/proc/net/unix").open("rb") as lines:
        next(lines, b"")
        for line in lines:
            _, _, _, flags, _, state, _, *path = line.split(maxsplit=7)
            if path and path[0].rstrip(b"\n") == os.fsencode(name):
                listens = listens or bool(int(flags, 16) & _UNIX_LISTENS)
                waiting += state.decode("ascii") == _UNIX_WAITS
    return waiting if listens else None


def accept_queue(port: int) -> int | None:
    """Return how many connections wait to be accepted on a TCP port of this machine.

    None: nothing listens there that this network namespace can see.
    """
    found = None
    for table in TCP_TABLES:
        for one in endpoints(table):
            if one.state != _LISTENING:  # thousands may follow
                break
            if one.port == port:
                found = (found or 0) + one.queued
    return found
