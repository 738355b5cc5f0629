"""One round: one workload against one server, and what both of them used."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from clients.load_result import LoadResult
from clients.workload import Workload
from loadtest.load.client_limit import ClientLimit, judge
from loadtest.load.coordinator import Progress, Workers, no_progress
from loadtest.load.intervals import IntervalRow
from loadtest.machine.cpu_sample import CpuSample
from loadtest.machine.descriptors import allow_descriptors
from loadtest.machine.pinning import Pinning
from loadtest.machine.processes import signal_name
from loadtest.machine.sampler import Sampler
from loadtest.machine.sockets import queue_length
from loadtest.machine.usage import Peaks, Usage, WatchedProcesses

_SETTLE_TIME = 0.5  # seconds without a change after which a server is assumed to accept no more

_POLL_INTERVAL = 0.02

_EXIT_GRACE = 1.0  # seconds that a process may take from closing its sockets to its end


@dataclass(frozen=True, slots=True)
class Engine:
    """Which load client, and how much of it."""

    name: str = "threads"
    """A key of `loadtest.load.worker.ENGINES`."""
    processes: int = 1
    capacity: float | None = None
    """Messages per second that it reaches on this machine, where that was calibrated."""


@dataclass(frozen=True, slots=True)
class EndedEarly:
    """Why a round ended early: before its time was up, or before all its messages were answered."""

    because: str
    """What happened, as the end of a sentence."""
    seconds: float
    """From the start of the load, its warm-up included."""
    server_gone: bool
    """The server's processes had ended."""
    exit_code: int | None = None
    """Exit code of the process that we had started; negative: the signal that killed it.

    None: unknown.
    """

    def __str__(self) -> str:
        return f"ended early: {self.how}"

    @property
    def how(self) -> str:
        """What happened, and when."""
        return f"{self.because} after {self.seconds:.2f} s"


@dataclass(slots=True)
class Round:
    """The figures of one round; None: not known."""

    load: LoadResult
    client_cpu_percent: float
    """100 is one core."""
    server_cpu_seconds: float | None = None
    server_pss_bytes: int | None = None
    peaks: Peaks | None = None
    limit: ClientLimit = field(default_factory=ClientLimit)
    series: list[IntervalRow] = field(default_factory=list)
    """The seconds of the round."""
    interrupted: bool = False
    """An interruption ended it before its time."""
    connections_made: int | None = None
    client_wait_percent: float = 0.0
    """Time that the client was ready to run while another process had its core; 100 is one core."""
    duration: float | None = None
    """Planned seconds of the workload; None: it was limited by a number of messages."""
    asking: int = 0
    """Connections for which a message was due."""
    server_processes: WatchedProcesses | None = None
    """The processes that the server's figures cover."""
    ended_early: EndedEarly | None = None
    others_share: float | None = None
    """Share of the CPUs' time that programs other than the client and the server used."""
    server_wait_share: float = 0.0
    """Share of the time that the server was ready to run while another process had the CPU."""

    @property
    def throughput(self) -> float:
        """Verified messages per second."""
        return self.load.verified / self.load.seconds if self.load.seconds else 0.0

    @property
    def cpu_us_per_message(self) -> float | None:
        """CPU time of the server's process tree per message, in microseconds."""
        messages = self.load.verified + self.load.drained
        if self.server_cpu_seconds is None or not self.load.verified:
            return None
        return self.server_cpu_seconds * 1e6 / messages


class RoundInterrupt(KeyboardInterrupt):
    """A round was ended before its time, by Ctrl-C or a signal; it has what was measured so far."""

    def __init__(self, partial_round: Round) -> None:
        super().__init__()
        self.round = partial_round


def measure(
    workload: Workload,
    pinning: Pinning,
    server_pid: int | None = None,
    progress: Progress = no_progress,
    engine: Engine | None = None,
    exit_code: Callable[[], int | None] | None = None,
) -> Round:
    """Run `workload` once, and return its figures.

    All steps are in this function, because figures are comparable only if their order is the same.

    Args:
        workload: The load, and the server to put under it.
        pinning: The CPUs of the client.
        server_pid: The server's process if we have started it; None: it is found by its socket.
        progress: Called repeatedly.
        engine: The load client; None: one process of threads.
        exit_code: Tells how that process ended, as `subprocess.Popen.poll` does.

    Raises:
        loadtest.load.coordinator.ClientError: This machine cannot carry that many connections.
        RoundInterrupt: It was ended before its time.
    """
    engine = engine or Engine()
    allow_descriptors(workload.connections)
    watch = Sampler(server_pid, (workload.host, workload.port))
    with Workers(workload, pinning, engine.name, engine.processes) as workers, watch:
        connections_made = workers.connect()
        _settle(workload.host, workload.port)
        # Before the start: on a busy machine, a short round may be over before we run again.
        before, sample = watch.usage(), CpuSample(pinning)
        start_ns = workers.start()
        if workload.warmup:
            time.sleep(max(0.0, (start_ns - time.perf_counter_ns()) / 1e9 + workload.warmup))
            before, sample = watch.usage(), CpuSample(pinning)
        workers.wait(progress)
        elapsed = (time.perf_counter_ns() - start_ns) / 1e9
        after, sample = watch.usage(), CpuSample(pinning).since(sample)
        server_gone = watch.has_ended()
        pss = watch.pss_bytes()
        load = workers.close()
        early = None  # an interrupted round ends as it was asked to
        if not workers.interrupted:
            early = _early_end(workload, load, elapsed, watch, exit_code, server_gone=server_gone)
    result = Round(load, client_cpu_percent=100 * load.cpu_share)
    result.client_wait_percent = 100 * load.wait_share
    result.series = workers.series
    result.interrupted = workers.interrupted
    result.connections_made = connections_made
    result.asking, result.duration = _asking(workload), workload.duration
    result.ended_early = early
    result.server_processes = watch.server_processes
    server_cpu_seconds = after.seconds - before.seconds
    is_watched = watch.server_processes is not None
    if is_watched:
        result.server_pss_bytes = pss
        result.peaks = watch.peaks
        if not (early and early.server_gone):  # the server's last CPU time was not seen
            result.server_cpu_seconds = server_cpu_seconds
        result.others_share = sample.others_share(load.cpu_share, server_cpu_seconds)
        result.server_wait_share = after.longest_wait_since(before)
    if not early:  # a round that ended early shows no limit
        result.limit = _limit(load, workload, pinning, engine, sample, (before, after), is_watched)
    if result.interrupted:
        raise RoundInterrupt(result)
    return result


def _limit(
    load: LoadResult,
    workload: Workload,
    pinning: Pinning,
    engine: Engine,
    sample: CpuSample,
    usages: tuple[Usage, Usage],
    is_watched: bool,  # noqa: FBT001 - private
) -> ClientLimit:
    """Return why the client was the limit of a round that came to its end."""
    before, after = usages
    processes = min(engine.processes, workload.connections)
    server_share = busiest_thread = None
    if is_watched:
        seconds = (after.at - before.at) * len(pinning.server)
        server_share = (after.seconds - before.seconds) / seconds
        busiest_thread = after.busiest_since(before)
    return judge(
        load,
        workload,
        client_share=load.cpu_share / processes,
        client_waited=load.wait_share / processes,
        client_cores_busy=sample.client_share if pinning.split else None,
        server_share=server_share,
        busiest_server_thread=busiest_thread,
        capacity=engine.capacity,
    )


def _early_end(
    workload: Workload,
    load: LoadResult,
    elapsed: float,
    watch: Sampler,
    exit_code: Callable[[], int | None] | None,
    *,
    server_gone: bool,
) -> EndedEarly | None:
    """Return why a round ended before its time; None where it did not.

    Args:
        workload: The workload of the round.
        load: Its result.
        elapsed: Seconds from the start until no connection had anything more to do.
        watch: Watches the server.
        exit_code: Tells how the server's process ended.
        server_gone: At that moment, no process of the server was left.
    """
    failed = load.gone >= workload.asking
    if workload.duration is None:
        early = load.verified + load.drained < (workload.messages or 0)
    else:
        interval = workload.asking / workload.rate if workload.rate else 0.0
        early = elapsed + interval < workload.warmup + workload.duration
    if not ((early and failed) or (server_gone and (early or workload.duration is not None))):
        return None
    deadline = time.monotonic() + _EXIT_GRACE  # its sockets are closed a little before its end
    while failed and watch.server_processes and not server_gone and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)
        server_gone = watch.has_ended()
    if not server_gone:
        return EndedEarly("every connection had failed", elapsed, server_gone=False)
    code = exit_code() if exit_code else None
    return EndedEarly(describe_end(code, watch), elapsed, server_gone=True, exit_code=code)


def _asking(workload: Workload) -> int:
    """Return for how many connections a message is due."""
    due = workload.messages
    if workload.schedule and workload.duration is not None:
        due = workload.schedule.count(workload.duration)
    return workload.asking if due is None else min(workload.asking, due)


def describe_end(code: int | None, watch: Sampler) -> str:
    """Return how a server ended, as the end of a sentence.

    Args:
        code: The exit code of its process; negative: the signal that killed it. None: unknown.
        watch: The sampler that has watched it.
    """
    if code is None:
        return f"the server ({watch.server_processes}) was gone"
    if code >= 0:
        return f"the server process exited with {code}"
    return f"the server process was killed by {signal_name(-code)}"


def _settle(host: str, port: int) -> None:
    """Wait until the server has accepted every connection, or accepts no more.

    A connection is made as soon as the kernel has queued it. If the server forks for each, the load
    of the clients that it serves already would delay accepting the others, and the measurement
    would be of a server that is still starting.
    """
    waiting = queue_length(host, port)
    last_change = time.monotonic()
    while waiting and time.monotonic() < last_change + _SETTLE_TIME:
        time.sleep(_POLL_INTERVAL)
        if (now := queue_length(host, port)) != waiting:
            waiting, last_change = now, time.monotonic()
