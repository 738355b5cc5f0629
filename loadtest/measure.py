"""One round: one workload against one server, and what both of them used."""

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from clients.load import LoadResult, Workload
from loadtest.pinning import Pinning, pinned
from loadtest.sampler import Peaks, Sampler, accept_queue

# A client this busy (of one core: under the GIL it cannot use more), facing a server that is not,
# has measured itself.
_BUSY_CLIENT = 0.90
_BUSY_SERVER = 0.90

_RESERVED_DESCRIPTORS = 64
_SETTLED = 0.5  # seconds without a change after which a server is taken to accept no more
_GLANCE = 0.02
_TICK = 0.1  # seconds between two words about the progress


class LoadError(Exception):
    """A round that could not be run; the message is a sentence."""


@dataclass(slots=True)
class Round:
    """What one round gave. None: not known."""

    load: LoadResult
    client_cpu_percent: float
    """100 is one core."""
    server_cpu_seconds: float | None = None
    server_pss_bytes: int | None = None
    peaks: Peaks | None = None
    client_limited: bool = False

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
    progress: Callable[[float], None] = lambda _seconds: None,
    engine: str = "threads",
) -> Round:
    """Run `workload` once.

    Args:
        workload: What to ask of which server.
        pinning: The CPUs of the client.
        server_pid: The server's process, where it is ours to look at.
        progress: Called again and again with the seconds since the start.
        engine: Which client: a key of `loadtest.worker.ENGINES`.

    Raises:
        LoadError: This machine cannot carry so many connections.
    """
    allow_descriptors(workload.connections)
    watch = Sampler(server_pid) if server_pid is not None else None
    with Worker(workload, pinning, engine) as worker, watch or nullcontext():
        worker.connected()
        _settle(workload.port)
        before = watch.cpu_seconds() if watch else 0.0
        worker.go()
        worker.over(progress)
        after = watch.cpu_seconds() if watch else 0.0
        if watch:
            watch.look()
        pss = watch.pss_bytes() if watch else None
        load = worker.close()
    seconds = load.seconds or 1.0
    result = Round(load, client_cpu_percent=100 * load.cpu_seconds / seconds)
    server_share = None
    if watch:
        result.server_cpu_seconds = after - before
        result.server_pss_bytes = pss
        result.peaks = watch.peaks
        server_share = (after - before) / (seconds * len(pinning.server))
    result.client_limited = load.verified > 0 and client_is_the_limit(
        load.cpu_seconds / seconds, server_share
    )
    return result


def client_is_the_limit(client_share: float, server_share: float | None) -> bool:
    """Tell whether a run measured its client rather than its server.

    Args:
        client_share: CPU time of the client, as a share of one core.
        server_share: CPU time of the server, as a share of the cores it may use; None: unknown.
    """
    if client_share < _BUSY_CLIENT:
        return False
    return server_share is None or server_share < _BUSY_SERVER


class Worker:
    """The load client's process (`loadtest.worker`), from this side."""

    def __init__(self, workload: Workload, pinning: Pinning, engine: str) -> None:
        with pinned(pinning.client):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "loadtest.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self._told = {"engine": engine, **asdict(workload)}

    def connected(self) -> int:
        """Let every connection be made; return how many were."""
        self._tell(json.dumps(self._told))
        return int(self._hear()["connected"])

    def go(self) -> None:
        """Let all connections begin."""
        self._tell("go")

    def over(self, progress: Callable[[float], None]) -> None:
        """Wait for the end of the workload's time, or of its messages."""
        import select

        assert self._process.stdout is not None  # noqa: S101 - it was opened as a pipe
        begun = time.monotonic()
        while not select.select([self._process.stdout], [], [], _TICK)[0]:
            progress(time.monotonic() - begun)
        self._hear()

    def close(self) -> LoadResult:
        """Let all connections end; return what came of them."""
        self._tell("close")
        found = self._hear()
        found["errors"] = Counter(found["errors"])
        found["latencies_us"] = Counter({int(k): n for k, n in found["latencies_us"].items()})
        return LoadResult(**found)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - likewise
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - likewise
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the load client ended with exit code {self._process.wait()}")
        heard: dict[str, Any] = json.loads(line)
        if "failed" in heard:
            raise LoadError(heard["failed"])
        return heard

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def _settle(port: int) -> None:
    """Wait until the server has accepted everyone, or accepts no more.

    A connection is made as soon as the kernel has queued it. Where the server forks for each, the
    clients who are served already would keep it from the others: the measurement would be of a
    server that is still starting.
    """
    waiting = accept_queue(port)
    changed = time.monotonic()
    while waiting and time.monotonic() < changed + _SETTLED:
        time.sleep(_GLANCE)
        if (now_waiting := accept_queue(port)) != waiting:
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
