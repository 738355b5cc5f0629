"""The load client of 400 threads: each has a connection, and asks again as soon as it is answered.

All threads start together, after all have connected (or failed to). Every reply is compared byte
by byte with what this connection is owed (`clients.content`). One process, as the tutorial has
it; so under the GIL it can be slower than the server that it measures, and says what CPU it used.
"""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from clients.client import SENT_AT_ONCE, ShortReplyError, exchange
from clients.content import Content
from clients.load import FAREWELL, Load, LoadResult, Peer, Workload, WrongReplyError

_STACK_SIZE = 256 * 1024
_FOLD = 10_000  # latencies that a thread keeps before it adds them to the common count


class ThreadLoad(Load):
    """A thread for every connection, and one connection for every thread."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._barrier = threading.Barrier(workload.connections + 1)
        self._threads: list[threading.Thread] = []

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
        super().start()
        self._barrier.wait()

    def wait(self) -> None:
        """Return when the time is over, or everything is answered or has failed."""
        if self._deadline:
            self._join(self._threads, until=self._deadline / 1e9)
        else:
            self._join(self._threads)
        self._stop_the_clock()

    def finish(self) -> LoadResult:
        """Wait for the replies under way, close everything, return the result."""
        # Who never had a byte is starved. To wait for it would let it have, after the time, the
        # place of one who is done. All others get their reply, or run into their timeout.
        for peer in self._peers:
            if peer.starved and peer.sock is not None:
                peer.cut = True
                with suppress(OSError):
                    peer.sock.shutdown(socket.SHUT_RDWR)
        self._join(self._threads)
        return self._tally()

    @staticmethod
    def _join(threads: Iterable[threading.Thread], until: float | None = None) -> None:
        for thread in threads:
            thread.join(None if until is None else max(0.0, until - time.perf_counter()))

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
        if error is None and number < (self.workload.active or self.workload.connections):
            try:
                self._converse(number, peer, share)
            except (OSError, WrongReplyError) as failed:
                error = failed
        if error is not None and not peer.cut:
            self._fail(number, peer, error)

    def _converse(self, number: int, peer: Peer, share: int | None) -> None:
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
        reconnect_at = every = self.workload.reconnect_every or -1
        try:
            sent_at = clock()
            for count in itertools.count() if share is None else range(share):
                if count == reconnect_at:
                    reconnect_at += every
                    sock.close()
                    peer.sock = sock = self._open()
                    send, recv = sock.sendall, sock.recv
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
        sock.settimeout(min(self.workload.timeout, FAREWELL))
        with suppress(TimeoutError):  # its own affair: all that it owed has come
            if extra := sock.recv(64):
                raise self._wrong(content, count, extra, b"")
        sock.close()


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
