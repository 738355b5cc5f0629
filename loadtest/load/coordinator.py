"""The processes of the load client (`loadtest.load.worker`), from this side."""

import json
import math
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from hdrh.histogram import HdrHistogram

from clients.load import LoadResult
from clients.recording import Second, release
from clients.workload import Workload
from loadtest.errors import ClientError, NoThreadsError
from loadtest.interruption import Deferred, blocked_in_children
from loadtest.load.intervals import IntervalRow, IntervalTotals
from loadtest.load.worker import STOP
from loadtest.machine.pinning import Pinning, pinned

_TICK = 0.1  # seconds between two words about the progress

_READ = 64 * 1024

_HEAD_START = 20_000_000  # nanoseconds from the word to the common start

Progress = Callable[[float, float, int], None]
"""Told, again and again: the seconds since the start, the present rate, the errors so far."""


def no_progress(_seconds: float, _rate: float, _errors: int) -> None:
    """Show no progress."""


class _Process:
    """One of them: lines in, lines out."""

    def __init__(self, told: dict[str, Any]) -> None:
        with blocked_in_children():
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "loadtest.load.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self.popen.stdin is not None  # noqa: S101 - they were opened as pipes
        assert self.popen.stdout is not None  # noqa: S101
        self._input, self.output = self.popen.stdin, self.popen.stdout
        self._unread = b""
        self.tell(json.dumps(told))

    def tell(self, line: str) -> None:
        """Say a line to it."""
        try:
            self._input.write(line.encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def hear(self) -> list[dict[str, Any]]:
        """Wait for something, and return the lines that have come."""
        data = self.output.read1(_READ)  # type: ignore[attr-defined] # it is buffered
        if not data:
            raise self._gone()
        *lines, self._unread = (self._unread + data).split(b"\n")
        heard = [json.loads(line) for line in lines]
        for said in heard:
            if "failed" in said:
                raise (NoThreadsError if said.get("threads") else ClientError)(said["failed"])
        return heard

    def stop(self) -> None:
        """Let the time be over, and no reply that is under way be awaited."""
        self.popen.send_signal(STOP)

    def _gone(self) -> ClientError:
        return ClientError(f"the load client ended with exit code {self.popen.wait()}")

    def end(self, *, kill: bool) -> None:
        """Let it end, or make it."""
        if kill:
            self.popen.kill()
        with suppress(BrokenPipeError):
            self._input.close()
        self.output.close()
        self.popen.wait()


class Workers:
    """All processes of one run, as a context manager that leaves none behind.

    Args:
        workload: What to do; each process has every n-th connection.
        pinning: The CPUs of the client, which the processes share out among them.
        engine: A key of `loadtest.load.worker.ENGINES`.
        processes: How many.
    """

    def __init__(
        self, workload: Workload, pinning: Pinning, engine: str = "epoll", processes: int = 1
    ) -> None:
        self.series: list[IntervalRow] = []
        """What each second gave, in order."""
        self._result = LoadResult()
        self._duration = workload.duration
        self._points: dict[int, IntervalTotals] = {}
        self._rate = 0.0
        self._begun = 0
        self._errors = 0
        self._over = 0
        self._errors_of: dict[_Process, int] = {}
        self._processes: list[_Process] = []
        self._interruptions = Deferred()
        self._stopped = False
        processes = min(processes, workload.connections)
        cpus = sorted(pinning.client)
        try:
            for number in range(processes):
                mine = frozenset({cpus[number % len(cpus)]}) if pinning.split else pinning.client
                told = {
                    "engine": engine,
                    "numbers": [number, workload.connections, processes],
                    "workload": asdict(workload),
                }
                with pinned(mine):
                    self._processes.append(_Process(told))
        except BaseException:
            self._end(kill=True)
            raise

    def connected(self) -> int:
        """Let every connection be made; return how many were.

        Raises:
            LoadError: This machine cannot carry so many.
        """
        return sum(map(int, self._await("connected")))

    def go(self) -> int:
        """Let all connections begin; return when, in nanoseconds of `time.perf_counter_ns`."""
        self._begun = time.perf_counter_ns() + _HEAD_START
        for process in self._processes:
            process.tell(f"go {self._begun}")
        return self._begun

    def over(self, progress: Progress = no_progress) -> None:
        """Wait for the end of the workload's time, or of its messages.

        From now on, an interruption (Ctrl-C) ends the time early: what was measured until then
        is the result. A second one raises `KeyboardInterrupt`.
        """
        self._interruptions.__enter__()
        self._await("over", progress)

    @property
    def interrupted(self) -> bool:
        """The run was ended before its time."""
        return self._stopped

    def close(self) -> LoadResult:
        """Let all connections end; return what came of them."""
        for process in self._processes:
            process.tell("close")
        total = self._result
        for said, recovery in self._await("result", more="recovery"):
            total.recovery.add(HdrHistogram.decode(recovery))
            total.add_counts(LoadResult(**said))
        for number in sorted(self._points):
            self._finish_second(number)
        self._complete_series()
        return total

    # -- what they say ---------------------------------------------------------------------------

    def _await(
        self, wanted: str, progress: Progress = no_progress, more: str | None = None
    ) -> list[Any]:
        """Wait until each has said what is `wanted`, and `more` with it; take in all else."""
        found: list[Any] = []
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.output, selectors.EVENT_READ, process)
            while len(found) < len(self._processes):
                self._heed_interruptions()
                for key, _ in selector.select(_TICK):
                    for said in key.data.hear():
                        if "second" in said:
                            self._take_in(key.data, said["second"])
                        self._over += "over" in said
                        if wanted in said:
                            found.append((said[wanted], said[more]) if more else said[wanted])
                            selector.unregister(key.fileobj)
                passed = (time.perf_counter_ns() - self._begun) / 1e9
                progress(passed, self._rate, self._errors)
        return found

    def _heed_interruptions(self) -> None:
        count = self._interruptions.count
        if count > 1:
            raise KeyboardInterrupt
        if count and not self._stopped:
            self._stopped = True
            for process in self._processes:
                process.stop()

    def _take_in(self, process: _Process, second: dict[str, Any]) -> None:
        histograms = {
            name: HdrHistogram.decode(second.pop(name)) for name in ("latency", "raw", "lag")
        }
        told = Second(**second, **histograms)
        self._result.add(told)
        point = self._points.setdefault(told.number, IntervalTotals())
        point.heard += 1
        point.seconds = max(point.seconds, told.seconds)
        self._errors_of[process] = told.errors
        point.errors = sum(self._errors_of.values())
        point.latency.add(told.latency)
        told.release()
        if point.heard >= len(self._processes) - self._over:
            self._finish_second(told.number)

    def _finish_second(self, number: int) -> None:
        point = self._points.pop(number)
        said = point.as_json(number)
        release(point.latency)
        if self._points.get(number + 1) is None and not said["messages"] and said["seconds"] < 1:
            return  # the rest of the last one, in which nothing came
        self._rate = said["messages"] / point.seconds if point.seconds else 0.0
        self.series.append(said)
        self._errors = point.errors

    def _complete_series(self) -> None:
        """Let the seconds reach to the end of the time, also where every connection failed before.

        A rate over the part of a second that they lived would be one that nobody had.
        """
        if self._duration is None or self._stopped:
            return
        known = {one["second"]: one for one in self.series}
        last = max(known, default=0)
        for number in range(last, math.ceil(self._duration)):
            one = known.get(number)
            if one is None:
                one = IntervalTotals().as_json(number)
                one["errors"] = self._result.errors.total()
                self.series.append(one)
            one["seconds"] = max(one["seconds"], round(min(1.0, self._duration - number), 3))

    # -- their end -------------------------------------------------------------------------------

    def _end(self, *, kill: bool) -> None:
        for process in self._processes:
            process.end(kill=kill)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._end(kill=kind is not None)
        self._interruptions.__exit__(None, None, None)
