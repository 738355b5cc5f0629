"""The load client of one thread: non-blocking sockets and a readiness loop (epoll(7)).

It sends, checks and counts what the client of 400 threads does, at several times the rate: there
is no thread to switch to, and the GIL is never let go of for another one.
"""

import heapq
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

from clients.connecting import Connector
from clients.line import Line, ToReceive, ToSend, ToTalk
from clients.load import LOOK, Load, flush
from clients.load_result import LoadResult
from clients.recording import Second
from clients.steps import LEAVE, NEVER, RECONNECT, Lost, ReplyError, Step
from clients.tls import TlsSocket
from clients.workload import Workload

_MOST_EVENTS = 1024  # a turn
_AT_ONCE = 256  # connections that are being made at a time, lest a backlog overflow
_SHORTEST = 0.001  # seconds
_FINE = 0.01  # seconds: shorter waits are not rounded to milliseconds, as epoll_wait(2) would


class EpollLoad(Load):
    """All connections on one loop."""

    def __init__(
        self,
        workload: Workload,
        numbers: Sequence[int] | None = None,
        on_second: Callable[[Second], None] | None = None,
    ) -> None:
        super().__init__(workload, numbers, on_second)
        self._epoll = select.epoll()
        self._connector = Connector(
            workload, self._secured, self._open, lambda line, error: self._fail(line.peer, error)
        )
        self._lines = {peer.number: Line(peer) for peer in self._peers}
        # What the loop needs of a line stands in a tuple: it is looked at for every message.
        self._talking: dict[int, tuple[Line, ToReceive, ToTalk, ToSend]] = {}
        self._timers: list[tuple[int, int, Line]] = []
        # Descriptors of those for which TLS has something that readiness does not tell of.
        self._pending: list[int] = []
        self._away: set[Line] = set()  # without a connection, until they make one again

    def connect(self) -> int:
        """Make every connection, many at a time; return how many were made."""
        self._connector.connect(self._lines.values())
        return sum(line.open for line in self._lines.values())

    def wait(self) -> None:
        """Run until the time is over, or everything is answered or has failed."""
        time.sleep(max(0, self._start - time.perf_counter_ns()) / 1e9)
        for line in self._lines.values():
            if line.open and line.peer.number < self.workload.asking:
                line.connection.setblocking(False)
                line.converse(line.peer.talk(self._start, self._deadline))
                self._watch(line)
                self._go_on(line)
        self._run(self._deadline)
        self._stop_the_clock()

    def finish(self) -> LoadResult:
        """Wait for the replies under way, close everything, return the result."""
        for line, *_ in list(self._talking.values()):
            if line.peer.starved:  # to wait would let it have the place of one who is done
                self._forget(line)
        self._run(NEVER)
        for line in self._lines.values():
            if line.open and line.connection.fileno() != -1:
                if not (line.peer.starved or self._stopped):
                    self._expect_silence(line.peer, line.connection)
                line.connection.close()
        return self._tally()

    # -- the loop ----------------------------------------------------------------------------------

    def _run(self, deadline: int) -> None:  # noqa: C901, PLR0912 - a call less for every message
        """Serve events until nobody talks any more, or a time in nanoseconds."""
        talking, size, clock = self._talking, self._size, time.perf_counter_ns
        find, can_send = talking.get, select.EPOLLOUT
        look = 0
        while talking or self._away:
            now = clock()
            if now >= deadline:
                return
            if now >= look:
                if self._stopped:
                    return
                look = now + LOOK
                self._drop_the_late(now)
            if now >= self._next_tick:
                self._tick(now)
            for fd, events in self._ready(min(look, deadline, self._next_tick) - now):
                if (tools := find(fd)) is None:
                    continue
                line, recv, talk, send = tools
                if events == can_send:
                    self._flush(line)
                    continue
                step: bytes | Step | Lost = b""
                try:
                    step = talk(recv(size))
                    if step.__class__ is not bytes:
                        self._carry_out(line, step)
                    elif step and (sent := send(step)) != len(step):
                        self._send_later(line, step[sent:])
                except BlockingIOError:  # nothing has come, or nothing is taken
                    if step:
                        self._send_later(line, cast("bytes", step))
                except StopIteration:
                    self._done(line)
                except OSError as error:
                    self._lose(line, error)
                except ReplyError as error:
                    self._drop(line, error)

    def _ready(self, wait: int) -> list[tuple[int, int]]:
        """Return events of at most `wait` nanoseconds; go on with those whose time has come."""
        timers = self._timers
        if timers:
            now = time.perf_counter_ns()
            while timers and timers[0][0] <= now:
                until, _, line = heapq.heappop(timers)
                if line.until == until:
                    line.until = NEVER
                    self._go_on(line)
            if timers:
                wait = min(wait, timers[0][0] - time.perf_counter_ns())
        seconds = max(0, wait) / 1e9
        if self._pending:
            seconds = 0.0
        elif timers and seconds < _FINE:
            select.select([self._epoll], [], [], seconds)
            seconds = 0.0
        events = self._epoll.poll(seconds, _MOST_EVENTS)
        if self._pending:
            told = {fd for fd, _ in events}
            events += [(fd, select.EPOLLIN) for fd in self._pending if fd not in told]
            self._pending.clear()
        return events

    def _go_on(self, line: Line) -> None:
        """Let a conversation begin, or go on because its time has come."""
        try:
            self._carry_out(line, line.talk(None))
        except StopIteration:
            self._done(line)
        except OSError as error:
            self._lose(line, error)
        except ReplyError as error:
            self._drop(line, error)

    def _lose(self, line: Line, error: OSError) -> None:
        """Let a conversation know what broke its connection, where it may go on over another."""
        problem = error
        while self.workload.reconnect and not line.over:
            self._close(line)
            self._away.add(line)
            try:
                self._carry_out(line, line.throw(problem))
            except StopIteration:
                self._done(line)
            except OSError as next_one:
                problem = next_one
                continue
            except ReplyError as wrong:
                self._drop(line, wrong)
            return
        self._drop(line, problem)

    def _carry_out(self, line: Line, step: bytes | Step | Lost) -> None:
        """Do what a conversation wants."""
        while not isinstance(step, bytes):
            if step is RECONNECT:
                self._reconnect(line)
            elif step is LEAVE:
                with suppress(OSError):  # the server has ended it already
                    line.connection.shutdown(socket.SHUT_WR)
            elif isinstance(step, Lost):
                self._close(line)
                self._away.add(line)
                if step.error is not None:
                    self._count(line.peer, step.error)
            else:
                if step.until != line.until:
                    line.until = step.until
                    heapq.heappush(self._timers, (step.until, line.peer.number, line))
                step = step.data
                break
            step = line.talk(None)
        if step:
            try:
                sent = line.send(step)
            except BlockingIOError:
                sent = 0
            if sent != len(step):
                self._send_later(line, step[sent:])

    def _send_later(self, line: Line, data: bytes) -> None:
        """Send what the kernel would not take, as soon as it takes more."""
        line.unsent += data
        line.send = line.queue
        self._talking[line.fd] = line.tools
        self._epoll.modify(line.fd, select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, line: Line) -> None:
        send = line.connection.send
        try:
            flush(line.unsent, send)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(line, error)
            return
        line.send = send
        self._talking[line.fd] = line.tools
        self._epoll.modify(line.fd, select.EPOLLIN)

    # -- beginnings and ends -----------------------------------------------------------------------

    def _watch(self, line: Line) -> None:
        if isinstance(line.connection, TlsSocket):
            line.recv = self._noting_more(line.connection, line.fd)
            if line.connection.pending:  # it came together with the end of the handshake
                self._pending.append(line.fd)
        self._talking[line.fd] = line.tools
        self._epoll.register(line.fd, select.EPOLLIN)

    def _noting_more(self, connection: TlsSocket, fd: int) -> ToReceive:
        """Return a ``recv`` that has the loop call it again where TLS has read more already."""

        def recv(size: int) -> bytes:
            data = connection.recv(size)
            if data and connection.pending:
                self._pending.append(fd)
            return data

        return recv

    def _forget(self, line: Line) -> None:
        line.until = NEVER
        if self._talking.pop(line.fd, None):
            self._epoll.unregister(line.fd)

    def _close(self, line: Line) -> None:
        self._forget(line)
        line.connection.close()
        line.fd = -1  # the number may be another one's soon

    def _done(self, line: Line) -> None:
        self._forget(line)
        self._away.discard(line)
        if line.peer.share is not None:  # it makes room for who waits
            line.connection.close()

    def _drop(self, line: Line, error: BaseException) -> None:
        self._close(line)
        self._away.discard(line)
        self._fail(line.peer, error)

    def _drop_the_late(self, now: int) -> None:
        for peer in list(self._late(now)):
            self._drop(self._lines[peer.number], TimeoutError())

    def _reconnect(self, line: Line) -> None:
        """Begin the next connection of this one; the handshake may still be under way."""
        self._close(line)
        line.use(self._connector.begin(self.workload.timeout), line.talk)
        self._away.discard(line)
        self._watch(line)
