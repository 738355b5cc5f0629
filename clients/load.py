"""What the load clients share: a workload, what comes of it, and the judgement of each reply.

A client differs in how it carries out its connections (threads, an event loop), and in nothing
that is sent, checked or counted.
"""

import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from errno import errorcode
from functools import cache

from clients.client import ShortReplyError
from clients.content import Content, diagnose
from echoserver import load_handler

FAREWELL = 1.0  # seconds that a server may take to end a connection that we have ended
_EXACT_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a server. Times are in seconds, sizes in bytes."""

    host: str
    port: int
    connections: int = 400
    duration: float | None = 5.0
    """How long to ask; None: until `messages` are answered."""
    messages: int | None = None
    """How many messages in all, shared out over the connections."""
    size: int = 64
    timeout: float = 10.0
    """For connecting, and for one reply."""
    seed: int = 1
    active: int | None = None
    """How many of the connections ask; the others are open and silent. None: all."""
    reconnect_every: int | None = None
    """After so many messages a connection is made anew, and its time counts; None: never."""
    handler: str = "echo"
    """The server's handler: a name or a class, as the server takes it; `answers` tells what it
    answers."""


@dataclass(slots=True)
class LoadResult:
    """What came of it."""

    verified: int = 0
    """Messages whose reply was right to the byte, within the time."""
    drained: int = 0
    """Replies, right too, that were under way when the time was over."""
    starved: int = 0
    """Connections that were made, and never got a byte back."""
    served: int = 0
    """Connections that got at least one reply, within the time."""
    seconds: float = 0.0
    """From the common start to the end of the time, or to the last reply of so many messages."""
    cpu_seconds: float = 0.0
    """CPU time of this process in those seconds."""
    errors: Counter[str] = field(default_factory=Counter)
    """Connections that failed, by kind; a connection that failed stays out."""
    first_errors: dict[str, str] = field(default_factory=dict)
    """For each kind, what happened first."""
    latencies_us: Counter[int] = field(default_factory=Counter)
    """Microseconds from send to complete reply → how many."""


class Peer:
    """One connection and what is known of it."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.verified = 0
        self.drained = 0
        self.last_reply_at = 0
        self.pending = False
        self.part = bytearray()
        """What has come of a reply that comes in pieces."""
        self.cut = False

    @property
    def starved(self) -> bool:
        """It waits, and has never had a byte."""
        return self.pending and not (self.verified or self.drained or self.part)


class Load(ABC):
    """Runs a `Workload`: `connect`, `start`, `wait`, `finish`, in this order.

    The steps are apart so that someone can look at the server between them.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.result = LoadResult()
        self._peers = [Peer() for _ in range(workload.connections)]
        self._lock = threading.Lock()
        self._started = 0
        self._deadline = 0
        self._cpu = 0.0
        answer = load_handler(workload.handler).answers

        @cache
        def content(number: int) -> Content:
            return Content(workload.seed, number, workload.size, answer)

        self._content = content

    @abstractmethod
    def connect(self) -> int:
        """Make every connection; return how many were made."""

    def start(self) -> None:
        """Let the clock run."""
        self._cpu = time.process_time()
        self._started = time.perf_counter_ns()
        if self.workload.duration is not None:
            self._deadline = self._started + int(self.workload.duration * 1e9)

    @abstractmethod
    def wait(self) -> None:
        """Return when the time is over, or everything is answered or has failed."""

    @abstractmethod
    def finish(self) -> LoadResult:
        """Wait for the replies under way, close everything, return the result."""

    # -- for those who carry it out --------------------------------------------------------------

    def _stop_the_clock(self) -> None:
        end = time.perf_counter_ns()
        if not self._deadline:  # who waited in vain for a reply does not make the others slower
            end = max((peer.last_reply_at for peer in self._peers), default=0) or end
        self.result.seconds = (end - self._started) / 1e9
        self.result.cpu_seconds = time.process_time() - self._cpu

    def _open(self) -> socket.socket:
        """Return a connection whose calls block, for as long as the workload's timeout at most."""
        workload = self.workload
        sock = socket.create_connection((workload.host, workload.port), workload.timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel keeps the time of each reply; Python's own timeout would add a poll to
        # every call.
        sock.settimeout(None)
        limit = struct.pack("ll", int(workload.timeout), int(workload.timeout % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return sock

    def _tally(self) -> LoadResult:
        """Sum up all connections, and close those that are open."""
        result = self.result
        for number, peer in enumerate(self._peers):
            result.verified += peer.verified
            result.drained += peer.drained
            result.served += peer.verified > 0
            result.starved += peer.starved
            if peer.sock is not None and peer.sock.fileno() != -1:
                if not peer.cut:
                    self._expect_silence(number, peer.sock)
                peer.sock.close()
        return result

    def _expect_silence(self, number: int, sock: socket.socket) -> None:
        """Count a server that has more to say than it was owed."""
        with suppress(OSError):
            if extra := sock.recv(64, socket.MSG_DONTWAIT):
                error = WrongReplyError("mismatch", f"{extra!r} came and nothing was owed")
                self._count_error(number, error)

    def _shares(self) -> list[int | None]:
        """Return how many messages each connection sends; None: as many as the time allows."""
        total, everyone = self.workload.messages, self.workload.connections
        count = min(self.workload.active or everyone, everyone)
        silent = [0] * (everyone - count)
        if total is None:
            return [*([None] * count), *silent]
        return [*(total // count + (number < total % count) for number in range(count)), *silent]

    def _wrong(
        self, content: Content, count: int, reply: bytes, expected: bytes
    ) -> "WrongReplyError":
        difference = diagnose(
            content, count, reply, expected, self._content, self.workload.connections
        )
        return WrongReplyError(difference.kind, difference.explanation)

    def _fold(self, latencies: list[int]) -> None:
        """Add a thread's latencies to the common count, which stays small however long we run."""
        counted = Counter(latencies)
        latencies.clear()
        with self._lock:
            total = self.result.latencies_us
            for microseconds, count in counted.items():
                total[_rounded(microseconds)] += count

    def _fail(self, number: int, peer: Peer, error: BaseException) -> None:
        if isinstance(error, (BlockingIOError, TimeoutError)) and peer.starved:
            return  # which is not an error
        peer.pending = False
        if peer.sock is not None:
            peer.sock.close()
        self._count_error(number, error)

    def _count_error(self, number: int, error: BaseException) -> None:
        kind, explanation = _classify(error)
        with self._lock:
            self.result.errors[kind] += 1
            self.result.first_errors.setdefault(kind, f"connection {number}: {explanation}")


class WrongReplyError(Exception):
    """A reply that was not what was owed."""

    def __init__(self, kind: str, explanation: str) -> None:
        super().__init__(explanation)
        self.kind = kind


def _classify(error: BaseException) -> tuple[str, str]:  # noqa: PLR0911 - a table
    """Return the kind of an error, as reports name it, and what happened."""
    match error:
        case WrongReplyError():
            return error.kind, str(error)
        case ShortReplyError():
            return "short", str(error)
        case ConnectionRefusedError():
            return "refused", "the connection was refused"
        case BlockingIOError() | TimeoutError():
            return "timeout", "no complete reply in time, or no connection"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return "reset", f"the connection was broken: {error.strerror}"
        case OSError():
            return errorcode.get(error.errno or 0, "other").lower(), str(error)
    return "other", repr(error)


def _rounded(microseconds: int) -> int:
    """Keep four significant digits."""
    unit: int = 10 ** max(0, len(str(microseconds)) - _EXACT_DIGITS)
    return (microseconds + unit // 2) // unit * unit
