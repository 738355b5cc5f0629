"""The load client of one thread: non-blocking sockets and a readiness loop (epoll(7)).

It sends, checks and counts what the client of 400 threads does, at several times the rate: there
is no thread to switch to, and the GIL is never let go of for another one.
"""

import errno
import heapq
import inspect
import itertools
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from clients.address import connect, is_unix
from clients.conversation import (
    LEAVE,
    NEVER,
    RECONNECT,
    Conversation,
    Lost,
    ReplyError,
    Step,
    Talk,
)
from clients.load import LOOK, Load, LoadResult, flush
from clients.proxy_header import PrefacedSocket, proxy_header
from clients.recording import Second
from clients.tls import Socket, TlsSocket
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
        self._lines = {peer.number: _Line(peer) for peer in self._peers}
        # What the loop needs of a line stands in a tuple: it is looked at for every message.
        self._talking: dict[int, tuple[_Line, _Recv, _Talk, _Send]] = {}
        self._timers: list[tuple[int, int, _Line]] = []
        # Descriptors of those for which TLS has something that readiness does not tell of.
        self._pending: list[int] = []
        self._away: set[_Line] = set()  # without a connection, until they make one again

    def connect(self) -> int:
        """Make every connection, many at a time; return how many were made."""
        lines = iter(self._lines.values())
        begun, timeout = time.monotonic(), self.workload.timeout
        address: tuple[int, Any] | None = None  # family, and what connect(2) takes
        for line in lines:  # the first that is made finds out which of the host's addresses it is
            try:
                sock = self._open()
            except OSError as error:
                self._fail(line.peer, error)
                break
            address = socket.AddressFamily(sock.family), sock.getpeername()
            line.use(sock, _nothing)
            break
        if address is None and is_unix(self.workload.host):
            address = socket.AF_UNIX, None
        elif address is None:
            family, _, _, _, where = socket.getaddrinfo(
                self.workload.host, self.workload.port, type=socket.SOCK_STREAM
            )[0]
            address = family, where
        self._address = address
        waiting: dict[int, tuple[_Line, int]] = {}
        while batch := [*itertools.islice(lines, _AT_ONCE - len(waiting))] or waiting:
            if self.result.errors["timeout"] and isinstance(batch, list):
                # A connection was not accepted within the timeout: the server does not keep up, and
                # batch after batch would wait as long.
                for line in [*batch, *lines]:
                    self._fail(line.peer, TimeoutError())
                continue
            for line in batch if isinstance(batch, list) else ():
                left = max(_SHORTEST, begun + timeout - time.monotonic())
                try:
                    line.use(self._begin(address[0], address[1], left), _nothing)
                except OSError as error:
                    self._fail(line.peer, error)
                    continue
                self._epoll.register(line.fd, select.EPOLLIN | select.EPOLLOUT)
                waiting[line.fd] = line, time.perf_counter_ns()
            self._await_connected(waiting)
        return sum(line.open for line in self._lines.values())

    def _await_connected(self, waiting: "dict[int, tuple[_Line, int]]") -> None:
        """Take those out that are connected by now, or failed, or took too long."""
        ready = {fd for fd, _ in self._epoll.poll(LOOK / 1e9, _MOST_EVENTS)}
        late = time.perf_counter_ns() - int(self.workload.timeout * 1e9)
        for fd, (line, since) in list(waiting.items()):
            try:
                if fd in ready:
                    self._greet(line)
                elif since < late:
                    raise TimeoutError
                else:
                    continue
            except BlockingIOError:
                self._epoll.modify(fd, select.EPOLLIN)  # the server's turn to greet
                continue
            except OSError as error:
                self._epoll.unregister(fd)
                line.open = False
                line.connection.close()
                self._fail(line.peer, error)
            else:
                self._epoll.unregister(fd)
            del waiting[fd]

    @staticmethod
    def _greet(line: "_Line") -> None:
        """Find out what became of a connection, and of the TLS handshake over it."""
        with socket.socket(fileno=os.dup(line.fd)) as sock:
            if problem := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(problem, os.strerror(problem))
        if isinstance(line.connection, TlsSocket):
            line.connection.handshake()
        else:
            line.connection.send(b"")  # and with it, a header that comes before all else

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

    def _go_on(self, line: "_Line") -> None:
        """Let a conversation begin, or go on because its time has come."""
        try:
            self._carry_out(line, line.talk(None))
        except StopIteration:
            self._done(line)
        except OSError as error:
            self._lose(line, error)
        except ReplyError as error:
            self._drop(line, error)

    def _lose(self, line: "_Line", error: OSError) -> None:
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

    def _carry_out(self, line: "_Line", step: bytes | Step | Lost) -> None:
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

    def _send_later(self, line: "_Line", data: bytes) -> None:
        """Send what the kernel would not take, as soon as it takes more."""
        line.unsent += data
        line.send = line.queue
        self._talking[line.fd] = line.tools
        self._epoll.modify(line.fd, select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, line: "_Line") -> None:
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

    def _watch(self, line: "_Line") -> None:
        if isinstance(line.connection, TlsSocket):
            line.recv = self._noting_more(line.connection, line.fd)
            if line.connection.pending:  # it came together with the end of the handshake
                self._pending.append(line.fd)
        self._talking[line.fd] = line.tools
        self._epoll.register(line.fd, select.EPOLLIN)

    def _noting_more(self, connection: TlsSocket, fd: int) -> "_Recv":
        """Return a ``recv`` that has the loop call it again where TLS has read more already."""

        def recv(size: int) -> bytes:
            data = connection.recv(size)
            if data and connection.pending:
                self._pending.append(fd)
            return data

        return recv

    def _forget(self, line: "_Line") -> None:
        line.until = NEVER
        if self._talking.pop(line.fd, None):
            self._epoll.unregister(line.fd)

    def _close(self, line: "_Line") -> None:
        self._forget(line)
        line.connection.close()
        line.fd = -1  # the number may be another one's soon

    def _done(self, line: "_Line") -> None:
        self._forget(line)
        self._away.discard(line)
        if line.peer.share is not None:  # it makes room for who waits
            line.connection.close()

    def _drop(self, line: "_Line", error: BaseException) -> None:
        self._close(line)
        self._away.discard(line)
        self._fail(line.peer, error)

    def _drop_the_late(self, now: int) -> None:
        for peer in list(self._late(now)):
            self._drop(self._lines[peer.number], TimeoutError())

    def _reconnect(self, line: "_Line") -> None:
        """Begin the next connection of this one; the handshake may still be under way."""
        self._close(line)
        family, address = self._address
        line.use(self._begin(family, address, self.workload.timeout), line.talk)
        self._away.discard(line)
        self._watch(line)

    def _begin(self, family: int, address: Any, timeout: float) -> Socket:
        """Return a connection that is being made, and does not block.

        Over a UNIX socket, it is made when this returns; so long may it take that there is room in
        the server's queue.
        """
        if family == socket.AF_UNIX:
            sock = connect(self.workload.host, 0, timeout)
            if self.workload.proxy_header:
                sock.sendall(proxy_header(self.workload.proxy_header, sock))
            sock.setblocking(False)
            return self._secured(sock)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        problem = sock.connect_ex(address)
        if problem not in {0, errno.EINPROGRESS}:
            sock.close()
            raise OSError(problem, os.strerror(problem))
        if self.workload.proxy_header:
            sock = cast("socket.socket", PrefacedSocket(sock, self.workload.proxy_header, address))
        return self._secured(sock)


_Talk = Callable[[bytes | None], bytes | Step | Lost]
_Send = Callable[[bytes], int]
_Recv = Callable[[int], bytes]


def _nothing(_came: bytes | None) -> bytes:
    """Say what a conversation wants that has not begun."""
    return b""


class _Line:
    """A connection, and the conversation over it."""

    __slots__ = (
        *("connection", "fd", "open", "peer", "recv", "send", "talk", "unsent", "until"),
        "_conversation",
    )

    connection: Socket
    talk: "_Talk"
    send: "_Send"
    recv: "_Recv"

    def __init__(self, peer: Conversation) -> None:
        self.peer = peer
        self.open = False
        self.until = NEVER
        self.unsent = bytearray()
        self._conversation: Talk | None = None

    def converse(self, talk: Talk) -> None:
        """Have this conversation from now on."""
        self._conversation, self.talk = talk, talk.send

    @property
    def over(self) -> bool:
        """The conversation has ended, or not begun."""
        talk = self._conversation
        return talk is None or inspect.getgeneratorstate(talk) == inspect.GEN_CLOSED

    def throw(self, error: OSError) -> bytes | Step | Lost:
        """Let the conversation know what broke its connection; return what it wants then."""
        assert self._conversation is not None  # noqa: S101 - it is not over
        return self._conversation.throw(error)

    @property
    def tools(self) -> "tuple[_Line, _Recv, _Talk, _Send]":
        """What the loop needs."""
        return self, self.recv, self.talk, self.send

    def use(self, sock: Socket, talk: "_Talk") -> None:
        """Talk over this connection from now on."""
        self.connection, self.talk, self.open = sock, talk, True
        self.fd = sock.fileno()
        self.send, self.recv = sock.send, sock.recv
        self.unsent.clear()

    def queue(self, data: bytes) -> int:
        """Take the place of `send` while something before it waits to be sent."""
        self.unsent += data
        return len(data)
