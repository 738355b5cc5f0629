"""The load client of 400 threads: each has a connection, and asks again as soon as it is answered.

All threads start together, after all have connected (or failed to). What they send, and whether
what comes back is right, is `clients.conversation`'s to say. Under the GIL one of them runs at a
time; so this client can be slower than the server that it measures, and says what CPU it used.
"""

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

from clients.client import SENT_AT_ONCE, has_pending
from clients.conversation import Conversation
from clients.load import LOOK, Load, flush, prefer_throughput
from clients.load_result import LoadResult
from clients.recording import Second
from clients.steps import LEAVE, NEVER, RECONNECT, Lost, ReplyError, Step, Talk
from clients.tls import Socket
from clients.workload import Workload

_STACK_SIZE = 256 * 1024
_LONGEST = 1 << 30  # milliseconds, as poll(2) takes them


class ThreadLoad(Load):
    """A thread for every connection, and one connection for every thread."""

    def __init__(
        self,
        workload: Workload,
        numbers: Sequence[int] | None = None,
        on_second: Callable[[Second], None] | None = None,
    ) -> None:
        super().__init__(workload, numbers, on_second)
        # A thread that blocks in send cannot read; so much always fits the kernel's buffers.
        self._sent_at_once = self._size <= SENT_AT_ONCE and not (workload.rate or workload.think)
        self._barrier = threading.Barrier(len(self._peers) + 1)
        self._threads: list[threading.Thread] = []
        self._socks: dict[int, Socket] = {}
        # Whom we have cut short: no error, or one that is not what they noticed.
        self._starved: set[int] = set()
        self._overdue: set[int] = set()

    def connect(self) -> int:
        """Start the threads; return how many connected, once each has connected or failed.

        Raises:
            RuntimeError: The system has not so many threads.
        """
        prefer_throughput()
        before = threading.stack_size(_STACK_SIZE)
        try:
            for peer in self._peers:
                thread = threading.Thread(
                    target=self._run, args=(peer,), name=f"Thread-{peer.number}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        finally:
            threading.stack_size(before)
        self._barrier.wait()
        return len(self._socks)

    def start(self, at: int | None = None) -> None:
        """Let all threads begin, together."""
        super().start(at)
        self._barrier.wait()

    def wait(self) -> None:
        """Return when the time is over, or everything is answered or has failed."""
        self._join(self._deadline)
        self._stop_the_clock()

    def finish(self) -> LoadResult:
        """Wait for the replies under way, close everything, return the result."""
        # Who never had a byte is starved. To wait for it would let it have, after the time, the
        # place of one who is done. All others get their reply, or run into their timeout.
        for peer in self._peers:
            if peer.starved or self._stopped:
                self._cut_short(peer, self._starved)
        self._join(NEVER)
        for peer in self._peers:
            sock = self._socks.get(peer.number)
            if sock is not None and sock.fileno() != -1:
                if peer.number not in self._starved:
                    self._expect_silence(peer, sock)
                sock.close()
        return self._tally()

    def _join(self, deadline: int) -> None:
        """Wait until all threads have ended, or a time in nanoseconds, or `stop`."""
        waiting = list(reversed(self._threads))
        look = 0
        while waiting and (now := time.perf_counter_ns()) < deadline:
            if now >= self._next_tick:
                self._tick(now)
            if now >= look:
                if self._stopped:
                    return
                look = now + LOOK
                for peer in list(self._late(now)):
                    self._cut_short(peer, self._overdue)
            waiting[-1].join((min(deadline, self._next_tick, look) - now) / 1e9)
            if not waiting[-1].is_alive():
                waiting.pop()

    def _cut_short(self, peer: Conversation, reason: set[int]) -> None:
        """Let a thread that is blocked go on, and know why."""
        reason.add(peer.number)
        with suppress(OSError, KeyError):
            self._socks[peer.number].shutdown(socket.SHUT_RDWR)

    # -- one thread ------------------------------------------------------------------------------

    def _run(self, peer: Conversation) -> None:
        error: BaseException | None = None
        try:
            self._socks[peer.number] = self._open()
        except OSError as failed:
            error = failed
        self._barrier.wait()  # all have connected, or failed
        self._barrier.wait()  # the clock runs
        if error is None and peer.number < self.workload.asking:
            time.sleep(max(0, self._start - time.perf_counter_ns()) / 1e9)
            talk = peer.talk(self._start, self._deadline)
            try:
                if self.workload.reconnect:
                    self._persisting(peer, talk)
                self._blocking(peer, talk) if self._sent_at_once else self._polling(peer, talk)
            except StopIteration:
                if peer.share is not None:  # it makes room for who waits
                    self._socks[peer.number].close()
            except (OSError, ReplyError) as failed:
                error = failed
        if error is not None and peer.number not in self._starved:
            self._fail(peer, TimeoutError() if peer.number in self._overdue else error)
            if peer.number in self._socks:
                self._socks[peer.number].close()

    def _blocking(self, peer: Conversation, talk: Talk) -> None:
        """Send what the conversation wants, and wait for the answer: the hot loop.

        Ends with StopIteration, as the conversation does.
        """
        size, go_on = self._size, talk.send
        sock = self._socks[peer.number]
        send, recv = sock.sendall, sock.recv
        came: bytes | None = None
        while True:
            step = go_on(came)
            if step.__class__ is bytes:
                if step:
                    send(step)
                came = recv(size)
            elif step is RECONNECT:
                sock = self._reconnected(peer)
                send, recv, came = sock.sendall, sock.recv, None
            else:  # the last steps of it
                self._polling(peer, talk, step)

    def _persisting(self, peer: Conversation, talk: Talk) -> None:
        """Do the same, and let the conversation know what breaks its connections: it goes on."""
        wire: _Wire | _NoWire = _Wire(self._socks[peer.number], self._size)
        step = talk.send(None)
        while True:
            came: bytes | None = None
            problem: OSError | None = None
            try:
                if step is RECONNECT:
                    wire = _Wire(self._reconnected(peer), self._size)
                elif step is LEAVE:
                    with suppress(OSError):  # the server has ended it already
                        self._socks[peer.number].shutdown(socket.SHUT_WR)
                elif isinstance(step, Lost):
                    self._socks[peer.number].close()
                    wire = _NoWire()
                    if step.error is not None:
                        self._count(peer, step.error)
                else:
                    data, until = (step, NEVER) if isinstance(step, bytes) else step
                    came = wire.exchange(data, until)
            except OSError as error:
                problem = error
            if peer.number in self._starved or peer.number in self._overdue:
                raise problem or TimeoutError
            step = talk.send(came) if problem is None else talk.throw(problem)

    def _polling(
        self, peer: Conversation, talk: Talk, step: bytes | Step | Lost | None = None
    ) -> None:
        """Do the same where it can be time to send while an answer is awaited."""
        wire = _Wire(self._socks[peer.number], self._size)
        came: bytes | None = None
        while True:
            if step is None:
                step = talk.send(came)
            if step is RECONNECT:
                wire = _Wire(self._reconnected(peer), self._size)
                came = None
            elif step is LEAVE:
                with suppress(OSError):  # the server has ended it already
                    self._socks[peer.number].shutdown(socket.SHUT_WR)
                came = None
            else:
                data, until = (step, NEVER) if isinstance(step, bytes) else cast("Step", step)
                came = wire.exchange(data, until)
            step = None

    def _reconnected(self, peer: Conversation) -> Socket:
        self._socks[peer.number].close()
        sock = self._socks[peer.number] = self._open()
        return sock


class _NoWire:
    """No connection: time passes, and nothing comes."""

    @staticmethod
    def exchange(_data: bytes, until: int) -> None:
        """Wait until nanosecond `until`."""
        time.sleep(max(0, until - time.perf_counter_ns()) / 1e9)


class _Wire:
    """A connection on which it can be time to send while an answer is awaited (poll(2))."""

    def __init__(self, sock: Socket, size: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._size = size
        self._unsent = bytearray()
        self._poll = select.poll()

    def exchange(self, data: bytes, until: int) -> bytes | None:
        """Send `data`, and return what comes; None where nothing does until nanosecond `until`."""
        self._unsent += data
        while (now := time.perf_counter_ns()) < until:
            if self._wait((until - now) // 1_000_000):
                try:
                    return self._sock.recv(self._size)
                except BlockingIOError:
                    self._flush()
            elif (left := until - time.perf_counter_ns()) > 0 and not self._unsent:
                time.sleep(left / 1e9)  # poll(2) counts milliseconds
        return None

    def _wait(self, milliseconds: int) -> bool:
        """Wait until something can be read or sent; tell whether it is so."""
        if has_pending(self._sock):
            return True
        wanted = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        try:
            self._poll.register(self._sock, wanted)
        except ValueError:  # the main thread has closed it: the run was interrupted
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        return bool(self._poll.poll(min(milliseconds, _LONGEST)))

    def _flush(self) -> None:
        with suppress(BlockingIOError):
            flush(self._unsent, self._sock.send)
