"""The load client of one thread: non-blocking sockets and a readiness loop (epoll(7)).

It sends, checks and counts what the client of 400 threads does, at several times the rate: there
is no thread to switch to, and the GIL is never let go of for another one.
"""

import errno
import os
import select
import socket
import time

from clients.client import ShortReplyError
from clients.content import Content
from clients.load import Load, LoadResult, Peer, Workload, WrongReplyError

_MOST_EVENTS = 1024  # a turn
_FOLD = 20_000  # latencies kept before they are added to the count
_LOOK = 0.05  # seconds between two looks whether someone waits too long
_READ = 256 * 1024


class EpollLoad(Load):
    """All connections on one loop."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._epoll = select.epoll()
        self._asking: dict[int, _Asking] = {}
        self._latencies: list[int] = []
        self._over = False

    def connect(self) -> int:
        """Make every connection, one after the other; return how many were made."""
        for number, peer in enumerate(self._peers):
            try:
                peer.sock = self._open()
            except OSError as error:
                self._fail(number, peer, error)
        return sum(peer.sock is not None for peer in self._peers)

    def wait(self) -> None:
        """Run until the time is over, or everything is answered or has failed."""
        for number, (peer, share) in enumerate(zip(self._peers, self._shares(), strict=True)):
            if peer.sock is not None and share != 0:
                every = self.workload.reconnect_every or -1
                asking = _Asking(number, peer, share, every, self._content(number))
                self._register(asking)
                try:
                    self._ask(asking)
                except (OSError, WrongReplyError) as error:
                    self._drop(asking, error)
        self._run(self._deadline or 1 << 63)
        self._over = True
        self._stop_the_clock()

    def finish(self) -> LoadResult:
        """Wait for the replies under way, close everything, return the result."""
        for asking in list(self._asking.values()):
            if asking.peer.starved:  # to wait would let it have the place of one who is done
                asking.peer.cut = True
                self._forget(asking)
        self._run(1 << 63)
        self._fold(self._latencies)
        return self._tally()

    # -- the loop ----------------------------------------------------------------------------------

    def _run(self, deadline: int) -> None:
        """Serve events until nobody asks any more, or a time in nanoseconds."""
        asking_by_fd, poll, clock = self._asking, self._epoll.poll, time.perf_counter_ns
        next_look = 0
        while asking_by_fd:
            now = clock()
            if now >= deadline:
                return
            if now >= next_look:
                next_look = now + int(_LOOK * 1e9)
                self._drop_the_late(now)
            for fd, events in poll(min(_LOOK, (deadline - now) / 1e9), _MOST_EVENTS):
                asking = asking_by_fd.get(fd)
                if asking is None:
                    continue
                try:
                    if events & ~select.EPOLLOUT:
                        self._receive(asking)
                    if events & select.EPOLLOUT and asking.unsent:
                        self._send_rest(asking)
                except (OSError, WrongReplyError, ShortReplyError) as error:
                    self._drop(asking, error)

    def _receive(self, asking: "_Asking") -> None:
        """Take what has come; where the reply is complete, check it and ask again."""
        peer, size = asking.peer, asking.size
        try:
            reply = asking.recv(_READ if size > _READ else size - len(peer.part))
        except BlockingIOError:
            return
        if peer.part or len(reply) != size:
            if not reply:
                raise ShortReplyError(bytes(peer.part), size)
            peer.part += reply
            if len(peer.part) < size:
                return
            reply = bytes(peer.part)
            peer.part.clear()
        now = time.perf_counter_ns()
        if reply != asking.expected:
            raise self._wrong(asking.content, asking.count, reply, asking.expected)
        peer.pending = False
        asking.count += 1
        if self._over or (self._deadline and now > self._deadline):
            peer.drained += 1
            self._forget(asking)
            return
        peer.verified += 1
        peer.last_reply_at = now
        self._latencies.append((now - asking.sent_at) // 1000)
        if len(self._latencies) >= _FOLD:
            self._fold(self._latencies)
        if asking.count == asking.share:
            self._take_leave(asking)
            return
        asking.sent_at = now
        if asking.count == asking.reconnect_at:
            self._reconnect(asking)
        self._ask(asking)

    def _ask(self, asking: "_Asking") -> None:
        """Send the next message, or as much of it as the kernel takes."""
        message, asking.expected = asking.content.message(asking.count)
        asking.peer.pending = True
        try:
            sent = asking.send(message)
        except BlockingIOError:
            sent = 0
        if sent < len(message):
            asking.unsent = memoryview(message)[sent:]
            self._epoll.modify(asking.fd, select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self, asking: "_Asking") -> None:
        try:
            asking.unsent = asking.unsent[asking.send(asking.unsent) :]
        except BlockingIOError:
            return
        if not asking.unsent:
            self._epoll.modify(asking.fd, select.EPOLLIN)

    # -- beginnings and ends -----------------------------------------------------------------------

    def _register(self, asking: "_Asking") -> None:
        sock = asking.peer.sock
        assert sock is not None  # noqa: S101 - for the type checker
        sock.setblocking(False)
        asking.use(sock)
        self._watch(asking)

    def _watch(self, asking: "_Asking") -> None:
        self._asking[asking.fd] = asking
        self._epoll.register(asking.fd, select.EPOLLIN)

    def _forget(self, asking: "_Asking") -> None:
        del self._asking[asking.fd]
        self._epoll.unregister(asking.fd)

    def _drop(self, asking: "_Asking", error: BaseException) -> None:
        if asking.fd in self._asking:
            self._forget(asking)
        self._fail(asking.number, asking.peer, error)

    def _drop_the_late(self, now: int) -> None:
        patience = int(self.workload.timeout * 1e9)
        for asking in list(self._asking.values()):
            if now - asking.sent_at > patience and not asking.peer.starved:
                self._drop(asking, TimeoutError())

    def _take_leave(self, asking: "_Asking") -> None:
        """End a connection whose share is done: it makes room for who waits."""
        self._forget(asking)
        sock = asking.peer.sock
        assert sock is not None  # noqa: S101 - for the type checker
        self._expect_silence(asking.number, sock)
        sock.close()

    def _reconnect(self, asking: "_Asking") -> None:
        """Begin the next connection of this one; the handshake may still be under way."""
        self._forget(asking)
        peer = asking.peer
        assert peer.sock is not None  # noqa: S101 - for the type checker
        family, address = peer.sock.family, peer.sock.getpeername()
        peer.sock.close()
        peer.sock = sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        problem = sock.connect_ex(address)
        if problem not in {0, errno.EINPROGRESS}:
            raise OSError(problem, os.strerror(problem))
        asking.use(sock)
        self._watch(asking)
        asking.reconnect_at += asking.every


class _Asking:
    """A connection that asks."""

    __slots__ = (
        "content",
        "count",
        "every",
        "expected",
        "fd",
        "number",
        "peer",
        "reconnect_at",
        "recv",
        "send",
        "sent_at",
        "share",
        "size",
        "unsent",
    )

    def __init__(
        self, number: int, peer: Peer, share: int | None, every: int, content: Content
    ) -> None:
        self.number = number
        self.peer = peer
        self.share = share
        self.content = content
        self.size = content.size
        self.count = 0
        self.expected = b""
        self.unsent = memoryview(b"")
        self.sent_at = time.perf_counter_ns()
        self.reconnect_at = self.every = every

    def use(self, sock: socket.socket) -> None:
        """Ask on this socket from now on."""
        self.fd = sock.fileno()
        self.send, self.recv = sock.send, sock.recv
