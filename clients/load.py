"""What the load clients share: their steps, their clock, and what comes of it.

A client (an *engine*) differs in how it carries out its connections (threads, an event loop), and
in nothing that is sent, checked or counted: that is `clients.conversation`.
"""

import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from errno import errorcode
from functools import cache
from pathlib import Path

from clients.address import connect, server_name
from clients.content import Content
from clients.conversation import Conversation
from clients.load_result import LoadResult
from clients.proxy_header import proxy_header
from clients.recording import Recorder, Second, folded
from clients.steps import NEVER, IdleEndError, ReplyError
from clients.tls import Socket, TlsError, TlsSocket
from clients.workload import Workload
from echoserver import load_handler
from echoserver.system.schedstat import thread_time

_SECOND = 1_000_000_000
_AT_ONCE = 256 * 1024  # bytes, at most, taken from the kernel or handed to it
_TELLING = 0.05  # seconds: of less, a share of a core says nothing
LOOK = 50_000_000  # nanoseconds between two looks whether someone waits too long


class Load(ABC):
    """Runs a `Workload`: `connect`, `start`, `wait`, `finish`, in this order.

    The steps are apart so that someone can look at the server between them.

    Args:
        workload: What to do.
        numbers: Which of its connections are ours; None: all.
        on_second: Told what each second gave; None: `result` takes it in.
    """

    def __init__(
        self,
        workload: Workload,
        numbers: Sequence[int] | None = None,
        on_second: Callable[[Second], None] | None = None,
    ) -> None:
        self.workload = workload
        self.result = LoadResult()
        self._on_second = on_second or self.result.add
        self._recorder = Recorder()
        # How much to ask recv(2) for: all that may be under way, within reason.
        self._size = min(workload.sizes.largest * workload.pipeline, _AT_ONCE)
        self._lock = threading.Lock()
        self._start = 0
        self._counts_from = 0
        self._deadline = NEVER
        self._next_tick = NEVER
        self._ticked = 0
        self._ticks = 0
        self._cpu = self._waited = 0.0
        self._stopped = 0
        trust = workload.trust
        self._context = trust.context() if trust else None
        answer, sizes, shares = (
            load_handler(workload.handler).answers,
            workload.sizes,
            workload.shares(),
        )

        @cache
        def content(number: int) -> Content:
            return Content(workload.seed, number, sizes, answer, workload.pipeline)

        self._peers = [
            Conversation(number, workload, shares[number], content, self._recorder)
            for number in (range(workload.connections) if numbers is None else numbers)
        ]

    @abstractmethod
    def connect(self) -> int:
        """Make every connection; return how many were made."""

    def start(self, at: int | None = None) -> None:
        """Let the clock run from nanosecond `at` of `time.perf_counter_ns`; None: now."""
        workload = self.workload
        self._start = time.perf_counter_ns() if at is None else at
        self._counts_from = self._next_tick = self._start + int(workload.warmup * 1e9)
        if workload.duration is not None:
            self._deadline = self._counts_from + int(workload.duration * 1e9)
        if not workload.warmup:
            self._count_from(self._start)

    @abstractmethod
    def wait(self) -> None:
        """Return when the time is over, or everything is answered or has failed."""

    @abstractmethod
    def finish(self) -> LoadResult:
        """Wait for the replies under way, close everything, return the result."""

    def stop(self) -> None:
        """End the time now, and wait for no reply; a signal's handler may call this.

        What was measured until then is the result.
        """
        self._stopped = self._stopped or time.perf_counter_ns()

    # -- the clock -------------------------------------------------------------------------------

    def _tick(self, now: int) -> None:
        """Take in what the last second gave; called as soon as `_next_tick` has come."""
        latency, raw, lag = self._recorder.take()
        if not self._ticked:  # the warm-up is over: nothing of it counts
            self._count_from(now)
            return
        passed = (now - self._ticked) / 1e9
        errors = self.result.errors.total()
        second = Second(self._ticks, passed, errors, latency, raw, lag)
        self._on_second(second)
        second.release()
        self._ticks += 1
        self._ticked = now
        self._next_tick = self._counts_from + (self._ticks + 1) * _SECOND

    def _count_from(self, now: int) -> None:
        self._cpu, self._waited = time.process_time(), _run_delay()
        self._counts_from = self._ticked = now
        self._next_tick = now + _SECOND

    def _stop_the_clock(self) -> None:
        now = time.perf_counter_ns()
        if not self._ticked:  # it was over before the warm-up was
            self._tick(now)
        self._tick(now)
        # Where every connection failed before, the rest of the time was without a reply.
        end = min(now, self._deadline) if self._stopped else self._deadline
        if self._deadline == NEVER and not self._stopped:
            # Who waited in vain does not make the others slower.
            end = max((peer.last_reply for peer in self._peers), default=0) or now
        self.result.seconds = max(0, end - self._counts_from) / 1e9
        if self.workload.duration is not None:  # it may have been over before the warm-up was
            self.result.seconds = min(self.result.seconds, self.workload.duration)
        at_work = (now - self._counts_from) / 1e9
        if at_work >= _TELLING:
            self.result.cpu_share = (time.process_time() - self._cpu) / at_work
            self.result.wait_share = (_run_delay() - self._waited) / at_work
        self._next_tick = NEVER

    # -- connections -----------------------------------------------------------------------------

    def _late(self, now: int) -> Iterator[Conversation]:
        """Return those whose reply is overdue.

        Who was never served is starved, and may wait until the time is over, where it ever is.
        """
        since, to_the_end = now - int(self.workload.timeout * 1e9), self._deadline != NEVER
        return (
            peer for peer in self._peers if peer.since < since and not (to_the_end and peer.starved)
        )

    def _open(self) -> Socket:
        """Return a connection whose calls block; one that waits too long is found by the watcher.

        A timeout of the kernel's (SO_RCVTIMEO) would start and stop a timer for every message.
        """
        workload = self.workload
        sock = connect(workload.host, workload.port, workload.timeout)
        if workload.proxy_header:
            sock.sendall(proxy_header(workload.proxy_header, sock))
        secured = self._secured(sock)
        if isinstance(secured, TlsSocket):
            secured.handshake()
        sock.settimeout(None)
        return secured

    def _secured(self, sock: socket.socket) -> Socket:
        """Return what speaks TLS over a connection, where the workload says so."""
        if self._context is None:
            return sock
        return TlsSocket(sock, self._context, server_name(self.workload.host))

    # -- what came of it -------------------------------------------------------------------------

    def _tally(self) -> LoadResult:
        """Sum up all connections."""
        result, workload = self.result, self.workload
        schedule = workload.schedule
        if schedule is not None and workload.duration is not None:
            asked = workload.warmup + workload.duration
            if self._stopped:
                asked = min(asked, max(0, self._stopped - self._start) / 1e9)
            due = schedule.count(asked)
            unsent = {
                peer.number: len(range(peer.number, due, workload.asking)) - peer.sent
                for peer in self._peers
                if peer.number < workload.asking
            }
            result.dropped = max(0, sum(unsent.values()))
            result.unsent = sum(unsent.get(peer.number, 0) for peer in self._peers if peer.gone)
        for peer in self._peers:
            result.drained += peer.drained
            result.served += peer.served
            result.starved += peer.starved
            result.gone += peer.gone
        result.reconnects = len(self._recorder.recoveries)
        result.recovery = folded(self._recorder.recoveries)
        if self._stopped:
            self._recorder.take()  # what came while everyone was told to stop
        if self._recorder.latencies:  # a thread was about to add to what the last tick took
            self._tick(time.perf_counter_ns())
        return result

    def _expect_silence(self, peer: Conversation, sock: Socket) -> None:
        """Count a server that has more to say than it was owed."""
        with suppress(OSError):
            sock.setblocking(False)
            if extra := sock.recv(4096):
                self._fail(peer, peer.wrong(None, extra))
            elif peer.number >= self.workload.asking:
                self._fail(peer, IdleEndError("closed", "the server ended a silent connection"))
        with suppress(OSError):
            sock.getpeername()
            peer.gone = False  # it was made again, and there was nothing to send since

    def _fail(self, peer: Conversation, error: BaseException) -> None:
        """Count what ended a connection."""
        if peer.leaving and isinstance(error, OSError):
            return  # all that was owed has come; how the server ends is its own affair
        if isinstance(error, (BlockingIOError, TimeoutError)):
            if peer.starved:
                return  # which is not an error
            error = peer.late()
        peer.give_up()
        self._count(peer, error)

    def _count(self, peer: Conversation, error: BaseException) -> None:
        """Count what a connection was lost by."""
        peer.gone = True
        kind, explanation = _classify(error)
        if not isinstance(error, ReplyError):
            explanation = f"connection {peer.number}: {explanation}"
        with self._lock:
            if isinstance(error, IdleEndError):
                self.result.ended_idle += 1
                return
            self.result.errors[kind] += 1
            self.result.first_errors.setdefault(kind, explanation)


def _classify(error: BaseException) -> tuple[str, str]:  # noqa: PLR0911 - a table
    """Return the kind of an error, as reports name it, and what happened."""
    match error:
        case ReplyError():
            return error.kind, str(error)
        case TlsError():
            return "tls", f"no TLS connection: {error.strerror}"
        case ConnectionRefusedError():
            return "refused", "the connection was refused"
        case BlockingIOError() | TimeoutError():
            return "timeout", "no complete reply in time, or no connection"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return "reset", f"the connection was broken: {error.strerror}"
        case OSError():
            return errorcode.get(error.errno or 0, "other").lower(), str(error)
    return "other", repr(error)


def _run_delay() -> float:
    """Return the seconds that this thread has waited for a CPU; 0 where that is not known."""
    with suppress(OSError, ValueError):
        return thread_time(Path("/proc/thread-self")).waited / 1e9
    return 0.0


def flush(unsent: bytearray, send: Callable[[bytearray], int]) -> None:
    """Hand `unsent` to the kernel, and take out what it takes.

    Raises:
        BlockingIOError: It takes no more for now.
    """
    while unsent:
        del unsent[: send(unsent[:_AT_ONCE])]


def prefer_throughput() -> None:
    """Ask the kernel not to let threads that wake up interrupt one that runs (SCHED_BATCH).

    Under the GIL they could do nothing but wait for it. Worth 6 % with 400 threads on a core.
    """
    with suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
