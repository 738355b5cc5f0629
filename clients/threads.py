"""The load client of 400 threads: each has a connection, and asks again as soon as it is answered.

All threads start together, after all have connected (or failed to). Every reply is compared byte
by byte with what this connection is owed (`clients.content`). One process, as the tutorial has
it; so under the GIL it can be slower than the server that it measures, and says what CPU it used.
"""

import itertools
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import errorcode
from functools import cache

from clients.client import SENT_AT_ONCE, ShortReplyError, exchange
from clients.content import Content, diagnose

_STACK_SIZE = 256 * 1024
_FOLD = 10_000  # latencies that a thread keeps before it adds them to the common count
_FAREWELL = 1.0  # seconds that a server may take to end a connection that we have ended
_EXACT_DIGITS = 4

# What the server's handler makes of a message.
ANSWERS: dict[str, Callable[[bytes], bytes]] = {"echo": bytes, "upper": bytes.upper}


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
    answer: str = "echo"
    """What the handler does, a key of `ANSWERS`."""


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


class _Peer:
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


class ThreadLoad:
    """Runs a `Workload`: `connect`, `start`, `wait`, `finish`, in this order.

    The steps are apart so that someone can look at the server between them.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.result = LoadResult()
        self._peers = [_Peer() for _ in range(workload.connections)]
        self._barrier = threading.Barrier(workload.connections + 1)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._started = 0
        self._deadline = 0
        self._cpu = 0.0
        answer = ANSWERS[workload.answer]

        @cache
        def content(number: int) -> Content:
            return Content(workload.seed, number, workload.size, answer)

        self._content = content

    def connect(self) -> int:
        """Start the threads; return how many connected, once each has connected or failed.

        Raises:
            RuntimeError: The system has not so many threads.
        """
        before = threading.stack_size(_STACK_SIZE)
        try:
            for number, share in enumerate(self._shares()):
                thread = threading.Thread(
                    target=self._run, args=(number, share), name=f"Thread-{number}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        finally:
            threading.stack_size(before)
        self._barrier.wait()
        return sum(peer.sock is not None for peer in self._peers)

    def start(self) -> None:
        """Let all threads begin, together."""
        self._cpu = time.process_time()
        self._started = time.perf_counter_ns()
        if self.workload.duration is not None:
            self._deadline = self._started + int(self.workload.duration * 1e9)
        self._barrier.wait()

    def wait(self) -> None:
        """Return when the time is over, or everything is answered or has failed."""
        if self._deadline:
            self._join(self._threads, until=self._deadline / 1e9)
        else:
            self._join(self._threads)
        end = time.perf_counter_ns()
        if not self._deadline:  # who waited in vain for a reply does not make the others slower
            end = max((peer.last_reply_at for peer in self._peers), default=0) or end
        self.result.seconds = (end - self._started) / 1e9
        self.result.cpu_seconds = time.process_time() - self._cpu

    def finish(self) -> LoadResult:
        """Wait for the replies under way, close everything, return the result."""
        result = self.result
        # Who never had a byte is starved. To wait for it would let it have, after the time, the
        # place of one who is done. All others get their reply, or run into their timeout.
        for peer in self._peers:
            if peer.starved and peer.sock is not None:
                peer.cut = True
                with suppress(OSError):
                    peer.sock.shutdown(socket.SHUT_RDWR)
        self._join(self._threads)
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

    @staticmethod
    def _join(threads: Iterable[threading.Thread], until: float | None = None) -> None:
        for thread in threads:
            thread.join(None if until is None else max(0.0, until - time.perf_counter()))

    def _expect_silence(self, number: int, sock: socket.socket) -> None:
        """Count a server that has more to say than it was owed."""
        with suppress(OSError):
            if extra := sock.recv(64, socket.MSG_DONTWAIT):
                error = _WrongReplyError("mismatch", f"{extra!r} came and nothing was owed")
                self._count_error(number, error)

    def _shares(self) -> list[int | None]:
        """Return how many messages each connection sends; None: as many as the time allows."""
        total, count = self.workload.messages, self.workload.connections
        if total is None:
            return [None] * count
        return [total // count + (number < total % count) for number in range(count)]

    # -- one thread ------------------------------------------------------------------------------

    def _run(self, number: int, share: int | None) -> None:
        peer = self._peers[number]
        error: BaseException | None = None
        try:
            peer.sock = self._open()
        except OSError as failed:
            error = failed
        self._barrier.wait()  # all have connected, or failed
        self._barrier.wait()  # the clock runs
        if error is None:
            try:
                self._converse(number, peer, share)
            except (OSError, _WrongReplyError) as failed:
                error = failed
        if error is not None and not peer.cut:
            self._fail(number, peer, error)

    def _open(self) -> socket.socket:
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

    def _converse(self, number: int, peer: _Peer, share: int | None) -> None:
        """Ask, check the answer, ask again: the hot loop."""
        sock = peer.sock
        assert sock is not None  # noqa: S101 - for the type checker; _run has just set it
        size, timeout = self.workload.size, self.workload.timeout
        patience = int(timeout * 1e9)
        content = self._content(number)
        message_of, clock = content.message, time.perf_counter_ns
        send, recv = sock.sendall, sock.recv
        deadline = self._deadline or 1 << 63
        latencies: list[int] = []
        record = latencies.append
        whole = size <= SENT_AT_ONCE
        try:
            sent_at = clock()
            for count in itertools.count() if share is None else range(share):
                message, expected = message_of(count)
                peer.pending = True
                if whole:
                    send(message)
                    reply = recv(size)
                    if len(reply) != size:
                        peer.part += reply
                        reply = _rest(recv, peer.part, size, sent_at + patience)
                else:
                    reply = exchange(sock, message, timeout, peer.part)
                now = clock()
                if reply != expected:
                    raise self._wrong(content, count, reply, expected)
                peer.pending = False
                if now > deadline:
                    peer.drained += 1
                    break
                peer.verified += 1
                peer.last_reply_at = now
                record((now - sent_at) // 1000)
                sent_at = now
                if len(latencies) == _FOLD:
                    self._fold(latencies)
            else:
                self._take_leave(content, share or 0, sock)
        finally:
            self._fold(latencies)

    def _take_leave(self, content: Content, count: int, sock: socket.socket) -> None:
        """End a connection whose share is done: it makes room for who waits.

        Whatever the server still sends is more than it owed.
        """
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(min(self.workload.timeout, _FAREWELL))
        with suppress(TimeoutError):  # its own affair: all that it owed has come
            if extra := sock.recv(64):
                raise self._wrong(content, count, extra, b"")
        sock.close()

    def _wrong(
        self, content: Content, count: int, reply: bytes, expected: bytes
    ) -> "_WrongReplyError":
        difference = diagnose(
            content, count, reply, expected, self._content, self.workload.connections
        )
        return _WrongReplyError(difference.kind, difference.explanation)

    def _fold(self, latencies: list[int]) -> None:
        """Add a thread's latencies to the common count, which stays small however long we run."""
        counted = Counter(latencies)
        latencies.clear()
        with self._lock:
            total = self.result.latencies_us
            for microseconds, count in counted.items():
                total[_rounded(microseconds)] += count

    def _fail(self, number: int, peer: _Peer, error: BaseException) -> None:
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


class _WrongReplyError(Exception):
    def __init__(self, kind: str, explanation: str) -> None:
        super().__init__(explanation)
        self.kind = kind


def _rest(recv: Callable[[int], bytes], pieces: bytearray, size: int, deadline: int) -> bytes:
    """Read what is missing of a reply of which `pieces` have come, until a time in nanoseconds."""
    more = bool(pieces)
    while more and len(pieces) < size:
        if time.perf_counter_ns() > deadline:
            raise TimeoutError
        piece = recv(size - len(pieces))
        pieces += piece
        more = bool(piece)
    if len(pieces) < size:
        raise ShortReplyError(bytes(pieces), size)
    reply = bytes(pieces)
    pieces.clear()
    return reply


def _classify(error: BaseException) -> tuple[str, str]:  # noqa: PLR0911 - a table
    """Return the kind of an error, as reports name it, and what happened."""
    match error:
        case _WrongReplyError():
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
