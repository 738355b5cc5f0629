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

from clients.load_result import LoadResult
from clients.recording import Second, release
from clients.workload import Workload
from loadtest.errors import ClientError, NoThreadsError
from loadtest.interruption import DeferredInterrupts, block_signals_in_children
from loadtest.load.intervals import IntervalRow, IntervalTotals
from loadtest.load.worker import STOP
from loadtest.machine.pinning import Pinning, affinity

_PROGRESS_INTERVAL = 0.1  # seconds between two reports of the progress

_READ_SIZE = 64 * 1024

_START_DELAY_NS = 20_000_000  # from the line "go" to the common start

Progress = Callable[[float, float, int], None]
"""Called repeatedly with the seconds since the start, the present rate, and the errors so far."""


def no_progress(_seconds: float, _rate: float, _errors: int) -> None:
    """Show no progress."""


class _Process:
    """A worker process: lines go in, and lines come out."""

    def __init__(self, settings: dict[str, Any]) -> None:
        with block_signals_in_children():
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "loadtest.load.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self.popen.stdin is not None  # noqa: S101 - they were opened as pipes
        assert self.popen.stdout is not None  # noqa: S101
        self._input, self.output = self.popen.stdin, self.popen.stdout
        self._partial_line = b""
        self.send(json.dumps(settings))

    def send(self, line: str) -> None:
        """Send the process a line."""
        try:
            self._input.write(line.encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise self._end_error() from None

    def receive(self) -> list[dict[str, Any]]:
        """Wait for output of the process, and return the messages in it."""
        data = self.output.read1(_READ_SIZE)  # type: ignore[attr-defined] # it is buffered
        if not data:
            raise self._end_error()
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            if "failed" in message:
                raise (NoThreadsError if message.get("threads") else ClientError)(message["failed"])
        return messages

    def stop(self) -> None:
        """End the load now, without waiting for the replies that are under way."""
        self.popen.send_signal(STOP)

    def _end_error(self) -> ClientError:
        return ClientError(f"the load client ended with exit code {self.popen.wait()}")

    def end(self, *, kill: bool) -> None:
        """Close the pipes and wait until the process has ended; kill it first if `kill` is set."""
        if kill:
            self.popen.kill()
        with suppress(BrokenPipeError):
            self._input.close()
        self.output.close()
        self.popen.wait()


class Workers:
    """All processes of one run, as a context manager that leaves none behind.

    Args:
        workload: The workload, of which each process has every n-th connection.
        pinning: The CPUs of the client, which the processes share out among them.
        engine: A key of `loadtest.load.worker.ENGINES`.
        processes: How many.
    """

    def __init__(
        self, workload: Workload, pinning: Pinning, engine: str = "epoll", processes: int = 1
    ) -> None:
        self.series: list[IntervalRow] = []
        """The seconds of the run, in order."""
        self._result = LoadResult()
        self._duration = workload.duration
        self._intervals: dict[int, IntervalTotals] = {}
        self._rate = 0.0
        self._start_ns = 0
        self._errors = 0
        self._finished_count = 0
        self._errors_of: dict[_Process, int] = {}
        self._processes: list[_Process] = []
        self._interruptions = DeferredInterrupts()
        self._stopped = False
        processes = min(processes, workload.connections)
        cpus = sorted(pinning.client)
        try:
            for number in range(processes):
                worker_cpus = (
                    frozenset({cpus[number % len(cpus)]}) if pinning.split else pinning.client
                )
                settings = {
                    "engine": engine,
                    "numbers": [number, workload.connections, processes],
                    "workload": asdict(workload),
                }
                with affinity(worker_cpus):
                    self._processes.append(_Process(settings))
        except BaseException:
            self._end(kill=True)
            raise

    def connect(self) -> int:
        """Wait until every process has connected; return how many connections were made.

        Raises:
            LoadError: This machine cannot carry that many connections.
        """
        return sum(map(int, self._await("connected")))

    def start(self) -> int:
        """Start all connections; return when, in nanoseconds of `time.perf_counter_ns`."""
        self._start_ns = time.perf_counter_ns() + _START_DELAY_NS
        for process in self._processes:
            process.send(f"go {self._start_ns}")
        return self._start_ns

    def wait(self, progress: Progress = no_progress) -> None:
        """Wait for the end of the workload's time, or of its messages.

        From now on, an interruption (Ctrl-C) ends the time early: what was measured until then
        is the result. A second one raises `KeyboardInterrupt`.
        """
        self._interruptions.__enter__()
        self._await("over", progress)

    @property
    def interrupted(self) -> bool:
        """An interruption ended the run before its time."""
        return self._stopped

    def close(self) -> LoadResult:
        """End all connections; return the result of all processes together."""
        for process in self._processes:
            process.send("close")
        total = self._result
        for counts, recovery in self._await("result", extra_key="recovery"):
            total.recovery.add(HdrHistogram.decode(recovery))
            total.add_counts(LoadResult(**counts))
        for number in sorted(self._intervals):
            self._finish_second(number)
        self._complete_series()
        return total

    # -- messages of the processes ---------------------------------------------------------------

    def _await(
        self, key: str, progress: Progress = no_progress, extra_key: str | None = None
    ) -> list[Any]:
        """Wait for a message with `key` from each process; return the values in them.

        Args:
            key: The key of the value.
            progress: Called repeatedly meanwhile.
            extra_key: A second key, to return pairs of values; None: single values.
        """
        replies: list[Any] = []
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.output, selectors.EVENT_READ, process)
            while len(replies) < len(self._processes):
                self._check_interruptions()
                for ready, _ in selector.select(_PROGRESS_INTERVAL):
                    for message in ready.data.receive():
                        if "second" in message:
                            self._add_second(ready.data, message["second"])
                        self._finished_count += "over" in message
                        if key in message:
                            replies.append(
                                (message[key], message[extra_key]) if extra_key else message[key]
                            )
                            selector.unregister(ready.fileobj)
                elapsed = (time.perf_counter_ns() - self._start_ns) / 1e9
                progress(elapsed, self._rate, self._errors)
        return replies

    def _check_interruptions(self) -> None:
        count = self._interruptions.count
        if count > 1:
            raise KeyboardInterrupt
        if count and not self._stopped:
            self._stopped = True
            for process in self._processes:
                process.stop()

    def _add_second(self, process: _Process, second: dict[str, Any]) -> None:
        histograms = {
            name: HdrHistogram.decode(second.pop(name)) for name in ("latency", "raw", "lag")
        }
        report = Second(**second, **histograms)
        self._result.add(report)
        interval = self._intervals.setdefault(report.number, IntervalTotals())
        interval.reports += 1
        interval.seconds = max(interval.seconds, report.seconds)
        self._errors_of[process] = report.errors
        interval.errors = sum(self._errors_of.values())
        interval.latency.add(report.latency)
        report.release()
        if interval.reports >= len(self._processes) - self._finished_count:
            self._finish_second(report.number)

    def _finish_second(self, number: int) -> None:
        interval = self._intervals.pop(number)
        row = interval.as_json(number)
        release(interval.latency)
        if self._intervals.get(number + 1) is None and not row["messages"] and row["seconds"] < 1:
            return  # the rest of the last second, in which no reply came
        self._rate = row["messages"] / interval.seconds if interval.seconds else 0.0
        self.series.append(row)
        self._errors = interval.errors

    def _complete_series(self) -> None:
        """Extend the series to the end of the duration, even if every connection failed before.

        Otherwise, the last rate would be taken over the fraction of a second that they lasted.
        """
        if self._duration is None or self._stopped:
            return
        rows = {row["second"]: row for row in self.series}
        last = max(rows, default=0)
        for number in range(last, math.ceil(self._duration)):
            row = rows.get(number)
            if row is None:
                row = IntervalTotals().as_json(number)
                row["errors"] = self._result.errors.total()
                self.series.append(row)
            row["seconds"] = max(row["seconds"], round(min(1.0, self._duration - number), 3))

    # -- the end of the processes ----------------------------------------------------------------

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
