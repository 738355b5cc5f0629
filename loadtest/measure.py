"""One round: one workload against one server, and what both of them used."""

import resource
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from clients.load import LoadResult
from clients.workload import Workload
from loadtest.limits import ClientLimit, judge
from loadtest.pinning import Pinning
from loadtest.sampler import Peaks, Sampler, Usage, busy_seconds, queue_length
from loadtest.workers import LoadError, Progress, Workers, no_progress

_RESERVED_DESCRIPTORS = 64
_SETTLED = 0.5  # seconds without a change after which a server is taken to accept no more
_GLANCE = 0.02


@dataclass(frozen=True, slots=True)
class Engine:
    """Which load client, and how much of it."""

    name: str = "threads"
    """A key of `loadtest.worker.ENGINES`."""
    processes: int = 1
    capacity: float | None = None
    """Messages per second that it reaches on this machine, where that was calibrated."""


@dataclass(slots=True)
class Round:
    """What one round gave. None: not known."""

    load: LoadResult
    client_cpu_percent: float
    """100 is one core."""
    server_cpu_seconds: float | None = None
    server_pss_bytes: int | None = None
    peaks: Peaks | None = None
    limit: ClientLimit = field(default_factory=ClientLimit)
    series: list[dict[str, Any]] = field(default_factory=list)
    """What each second gave."""

    @property
    def throughput(self) -> float:
        """Verified messages per second."""
        return self.load.verified / self.load.seconds if self.load.seconds else 0.0

    @property
    def cpu_us_per_message(self) -> float | None:
        """CPU time of the server's process tree per message, in microseconds."""
        messages = self.load.verified + self.load.drained
        if self.server_cpu_seconds is None or not messages:
            return None
        return self.server_cpu_seconds * 1e6 / messages


def measure(
    workload: Workload,
    pinning: Pinning,
    server_pid: int | None = None,
    progress: Progress = no_progress,
    engine: Engine | None = None,
) -> Round:
    """Run `workload` once.

    Args:
        workload: What to ask of which server.
        pinning: The CPUs of the client.
        server_pid: The server's process, where it is ours to look at.
        progress: Called again and again.
        engine: Which client; None: one process of threads.

    Raises:
        LoadError: This machine cannot carry so many connections.
    """
    engine = engine or Engine()
    allow_descriptors(workload.connections)
    watch = Sampler(server_pid) if server_pid is not None else None
    with (
        Workers(workload, pinning, engine.name, engine.processes) as workers,
        watch or nullcontext(),
    ):
        workers.connected()
        _settle(workload.host, workload.port)
        usage = watch.usage if watch else _unknown
        # Before they go: where the machine is busy, a short round may be over until we have a turn.
        before, busy, since = usage(), busy_seconds(pinning.client), time.monotonic()
        begun = workers.go()
        if workload.warmup:
            time.sleep(max(0.0, (begun - time.perf_counter_ns()) / 1e9 + workload.warmup))
            before, busy, since = usage(), busy_seconds(pinning.client), time.monotonic()
        workers.over(progress)
        after, at_work = usage(), time.monotonic() - since
        busy = (busy_seconds(pinning.client) - busy) / (at_work * len(pinning.client))
        if watch:
            watch.look()
        pss = watch.pss_bytes() if watch else None
        load = workers.close()
    seconds = load.seconds or 1.0
    result = Round(load, client_cpu_percent=100 * load.cpu_share)
    result.series = workers.series
    used = after.seconds - before.seconds
    if watch:
        result.server_cpu_seconds = used
        result.server_pss_bytes = pss
        result.peaks = watch.peaks
    result.limit = judge(
        load,
        workload,
        client_share=(load.cpu_share + load.wait_share)
        / min(engine.processes, workload.connections),
        client_cores_busy=busy if pinning.split else None,
        server_share=used / (seconds * len(pinning.server)) if watch else None,
        busiest_server_thread=after.busiest_since(before) if watch else None,
        capacity=engine.capacity,
    )
    return result


def _unknown() -> Usage:
    return Usage(0.0)


def _settle(host: str, port: int) -> None:
    """Wait until the server has accepted everyone, or accepts no more.

    A connection is made as soon as the kernel has queued it. Where the server forks for each, the
    clients who are served already would keep it from the others: the measurement would be of a
    server that is still starting.
    """
    waiting = queue_length(host, port)
    changed = time.monotonic()
    while waiting and time.monotonic() < changed + _SETTLED:
        time.sleep(_GLANCE)
        if (now_waiting := queue_length(host, port)) != waiting:
            waiting, changed = now_waiting, time.monotonic()


def allow_descriptors(connections: int) -> None:
    """Raise the soft limit of open files as far as `connections` need it."""
    needed = connections + _RESERVED_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed and hard != resource.RLIM_INFINITY and hard < needed:
        raise LoadError(
            f"{connections} connections need {needed} file descriptors, and this process may have "
            f"{hard}: raise the hard limit (ulimit -Hn {needed}) or ask for fewer with -c"
        )
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
