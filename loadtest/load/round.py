"""One round: one workload against one server, and what both of them used."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from clients.load import LoadResult
from clients.workload import Workload
from loadtest.load.client_limit import ClientLimit, judge
from loadtest.load.coordinator import Progress, Workers, no_progress
from loadtest.load.intervals import IntervalRow
from loadtest.machine.descriptors import allow_descriptors
from loadtest.machine.pinning import Pinning
from loadtest.machine.processes import signal_name
from loadtest.machine.sampler import Sampler
from loadtest.machine.sockets import queue_length
from loadtest.machine.usage import Peaks, Watched, busy_seconds

_SETTLED = 0.5  # seconds without a change after which a server is taken to accept no more

_POLL_INTERVAL = 0.02

_TIME_TO_END = 1.0  # seconds that a process may take from closing its sockets to its end


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
    """Why a round was over before its time, or before all its messages were answered."""

    because: str
    """What happened, as the end of a sentence."""
    seconds: float
    """From the start of the load, its warm-up included."""
    server_gone: bool
    """The server's processes had ended."""
    exit_code: int | None = None
    """Of the process that we had started; negative: the signal that killed it. None: unknown."""

    def __str__(self) -> str:
        return f"ended early: {self.how}"

    @property
    def how(self) -> str:
        """What happened, and when."""
        return f"{self.because} after {self.seconds:.2f} s"


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
    series: list[IntervalRow] = field(default_factory=list)
    """What each second gave."""
    interrupted: bool = False
    """It was ended before its time."""
    connections_made: int | None = None
    client_wait_percent: float = 0.0
    """Time for which the client could have run, and somebody else had its core, likewise."""
    duration: float | None = None
    """Seconds that were asked for; None: a number of messages was."""
    asking: int = 0
    """Connections for which a message was due."""
    watched: Watched | None = None
    """Whose the server's figures are."""
    ended_early: EndedEarly | None = None
    others_share: float | None = None
    """Of all CPUs' time: what neither the client nor the server used, and was not idle."""
    server_wait_share: float = 0.0
    """Of the time: for how long the server could have run, and somebody else had the CPU."""

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

    def __init__(self, cut_short: Round) -> None:
        super().__init__()
        self.round = cut_short


def measure(
    workload: Workload,
    pinning: Pinning,
    server_pid: int | None = None,
    progress: Progress = no_progress,
    engine: Engine | None = None,
    exit_code: Callable[[], int | None] | None = None,
) -> Round:
    """Run `workload` once.

    Args:
        workload: What to ask of which server.
        pinning: The CPUs of the client.
        server_pid: The server's process, where we have started it; another is looked for.
        progress: Called again and again.
        engine: Which client; None: one process of threads.
        exit_code: Tells how that process ended, as `subprocess.Popen.poll` does.

    Raises:
        loadtest.load.coordinator.ClientError: This machine cannot carry so many connections.
        RoundInterrupt: It was ended before its time.
    """
    engine = engine or Engine()
    allow_descriptors(workload.connections)
    watch = Sampler(server_pid, (workload.host, workload.port))
    with Workers(workload, pinning, engine.name, engine.processes) as workers, watch:
        made = workers.connected()
        _settle(workload.host, workload.port)
        # Before they go: where the machine is busy, a short round may be over until we have a turn.
        before, machine = watch.usage(), _Machine(pinning)
        begun = workers.go()
        if workload.warmup:
            time.sleep(max(0.0, (begun - time.perf_counter_ns()) / 1e9 + workload.warmup))
            before, machine = watch.usage(), _Machine(pinning)
        workers.over(progress)
        lasted = (time.perf_counter_ns() - begun) / 1e9
        after, machine = watch.usage(), _Machine(pinning).since(machine)
        gone = watch.has_ended()
        pss = watch.pss_bytes()
        load = workers.close()
        early = None  # what was interrupted ended as it was told to
        if not workers.interrupted:
            early = _ended_early(workload, load, lasted, watch, exit_code, gone=gone)
    result = Round(load, client_cpu_percent=100 * load.cpu_share)
    result.client_wait_percent = 100 * load.wait_share
    result.series = workers.series
    result.interrupted = workers.interrupted
    result.connections_made = made
    result.asking, result.duration = _asking(workload), workload.duration
    result.ended_early = early
    result.watched = watch.watched
    used = after.seconds - before.seconds
    known = watch.watched is not None
    if known:
        result.server_pss_bytes = pss
        result.peaks = watch.peaks
        if not (early and early.server_gone):  # what it used last, nobody has seen
            result.server_cpu_seconds = used
    if known:
        result.others_share = machine.others_share(load.cpu_share, used)
        result.server_wait_share = after.longest_wait_since(before)
    if early:  # which is nobody's limit
        return result
    result.limit = judge(
        load,
        workload,
        client_share=load.cpu_share / min(engine.processes, workload.connections),
        client_waited=load.wait_share / min(engine.processes, workload.connections),
        client_cores_busy=machine.client_share if pinning.split else None,
        server_share=used / ((after.at - before.at) * len(pinning.server)) if known else None,
        busiest_server_thread=after.busiest_since(before) if known else None,
        capacity=engine.capacity,
    )
    if result.interrupted:
        raise RoundInterrupt(result)
    return result


class _Machine:
    """How much the CPUs of client and server have been used, by all processes."""

    def __init__(self, pinning: Pinning) -> None:
        self._pinning = pinning
        self.at = time.monotonic()
        self.client = busy_seconds(pinning.client)
        self.programs = busy_seconds(pinning.client | pinning.server, interrupts=False)
        self.ours = time.process_time()

    def since(self, before: "_Machine") -> Self:
        """Return this minus what was `before`."""
        self.at -= before.at
        self.client -= before.client
        self.programs -= before.programs
        self.ours -= before.ours
        return self

    @property
    def client_share(self) -> float:
        """How much of the time the client's CPUs were not idle."""
        return self.client / (self.at * len(self._pinning.client))

    def others_share(self, client_share: float, server_seconds: float) -> float:
        """Return how much of the CPUs' time neither client nor server used, nor was idle."""
        others = self.programs - self.ours - server_seconds - client_share * self.at
        cpus = len(self._pinning.client | self._pinning.server)
        return max(0.0, others / (self.at * cpus))


def _ended_early(
    workload: Workload,
    load: LoadResult,
    lasted: float,
    watch: Sampler,
    exit_code: Callable[[], int | None] | None,
    *,
    gone: bool,
) -> EndedEarly | None:
    """Return why a round ended before its time; None where it did not.

    Args:
        workload: What was asked.
        load: What came of it.
        lasted: Seconds from the start until no connection had anything more to do.
        watch: Watches the server.
        exit_code: Tells how the server's process ended.
        gone: At that moment nothing was left of the server.
    """
    failed = load.gone >= workload.asking
    if workload.duration is None:
        early = load.verified + load.drained < (workload.messages or 0)
    else:
        between = workload.asking / workload.rate if workload.rate else 0.0
        early = lasted + between < workload.warmup + workload.duration
    if not ((early and failed) or (gone and (early or workload.duration is not None))):
        return None
    deadline = time.monotonic() + _TIME_TO_END  # its sockets are closed a little before its end
    while failed and watch.watched and not gone and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)
        gone = watch.has_ended()
    if not gone:
        return EndedEarly("every connection had failed", lasted, server_gone=False)
    code = exit_code() if exit_code else None
    return EndedEarly(describe_end(code, watch), lasted, server_gone=True, exit_code=code)


def _asking(workload: Workload) -> int:
    """Return for how many connections a message is due."""
    due = workload.messages
    if workload.schedule and workload.duration is not None:
        due = workload.schedule.count(workload.duration)
    return workload.asking if due is None else min(workload.asking, due)


def describe_end(code: int | None, watch: Sampler) -> str:
    """Return how a server ended, as the end of a sentence.

    Args:
        code: What its process exited with; negative: the signal that killed it. None: unknown.
        watch: Has watched it.
    """
    if code is None:
        return f"the server ({watch.watched}) was gone"
    if code >= 0:
        return f"the server process exited with {code}"
    return f"the server process was killed by {signal_name(-code)}"


def _settle(host: str, port: int) -> None:
    """Wait until the server has accepted everyone, or accepts no more.

    A connection is made as soon as the kernel has queued it. Where the server forks for each, the
    clients who are served already would keep it from the others: the measurement would be of a
    server that is still starting.
    """
    waiting = queue_length(host, port)
    changed = time.monotonic()
    while waiting and time.monotonic() < changed + _SETTLED:
        time.sleep(_POLL_INTERVAL)
        if (now_waiting := queue_length(host, port)) != waiting:
            waiting, changed = now_waiting, time.monotonic()
