"""Connections that are made many at a time, without blocking."""

import errno
import itertools
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from clients.address import connect, is_unix
from clients.line import Line, say_nothing
from clients.load import LOOK
from clients.proxy_header import PrefacedSocket, proxy_header
from clients.tls import Socket, TlsSocket
from clients.workload import Workload

_AT_ONCE = 256  # connections that are being made at a time, lest a backlog overflow
_SHORTEST = 0.001  # seconds


class Connector:
    """Makes the connections of a load.

    Args:
        workload: To whom, and how.
        secure: Returns what speaks TLS over a connection, or the connection.
        open_first: Makes a connection and blocks; it may raise `OSError`.
        fail: Counts a connection that could not be made.
    """

    def __init__(
        self,
        workload: Workload,
        secure: Callable[[socket.socket], Socket],
        open_first: Callable[[], Socket],
        fail: Callable[[Line, BaseException], None],
    ) -> None:
        self._workload, self._secure = workload, secure
        self._open_first, self._fail = open_first, fail
        self._address: tuple[int, Any] = socket.AF_UNSPEC, None  # family, and what connect(2) takes
        self._timed_out = False

    def connect(self, lines: Iterable[Line]) -> None:
        """Make a connection for each of `lines`."""
        with select.epoll() as epoll:
            self._connect(iter(lines), epoll)

    def _connect(self, rest: Iterator[Line], epoll: select.epoll) -> None:
        begun, timeout = time.monotonic(), self._workload.timeout
        self._find_address(rest)
        waiting: dict[int, tuple[Line, int]] = {}
        while batch := list(itertools.islice(rest, _AT_ONCE - len(waiting))) or waiting:
            if self._timed_out and isinstance(batch, list):
                # A connection was not accepted within the timeout: the server does not keep up, and
                # batch after batch would wait as long.
                for line in [*batch, *rest]:
                    self._fail(line, TimeoutError())
                continue
            for line in batch if isinstance(batch, list) else ():
                left = max(_SHORTEST, begun + timeout - time.monotonic())
                try:
                    line.use(self.begin(left), say_nothing)
                except OSError as error:
                    self._give_up(line, error)
                    continue
                epoll.register(line.fd, select.EPOLLIN | select.EPOLLOUT)
                waiting[line.fd] = line, time.perf_counter_ns()
            self._await_connected(waiting, epoll)

    def _find_address(self, lines: Iterable[Line]) -> None:
        """Make the first connection, which shows which of the host's addresses the server has."""
        workload = self._workload
        for line in lines:
            try:
                sock = self._open_first()
            except OSError as error:
                self._give_up(line, error)
                break
            self._address = socket.AddressFamily(sock.family), sock.getpeername()
            line.use(sock, say_nothing)
            return
        if is_unix(workload.host):
            self._address = socket.AF_UNIX, None
            return
        family, _, _, _, where = socket.getaddrinfo(
            workload.host, workload.port, type=socket.SOCK_STREAM
        )[0]
        self._address = family, where

    def _await_connected(self, waiting: dict[int, tuple[Line, int]], epoll: select.epoll) -> None:
        """Take those out that are connected by now, or failed, or took too long."""
        ready = {fd for fd, _ in epoll.poll(LOOK / 1e9, _AT_ONCE)}
        late = time.perf_counter_ns() - int(self._workload.timeout * 1e9)
        for fd, (line, since) in list(waiting.items()):
            try:
                if fd in ready:
                    self._greet(line)
                elif since < late:
                    raise TimeoutError
                else:
                    continue
            except BlockingIOError:
                epoll.modify(fd, select.EPOLLIN)  # the server's turn to greet
                continue
            except OSError as error:
                epoll.unregister(fd)
                line.open = False
                line.connection.close()
                self._give_up(line, error)
            else:
                epoll.unregister(fd)
            del waiting[fd]

    def _give_up(self, line: Line, error: OSError) -> None:
        self._timed_out = self._timed_out or isinstance(error, (TimeoutError, BlockingIOError))
        self._fail(line, error)

    @staticmethod
    def _greet(line: Line) -> None:
        """Find out what became of a connection, and of the TLS handshake over it."""
        with socket.socket(fileno=os.dup(line.fd)) as sock:
            if problem := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(problem, os.strerror(problem))
        if isinstance(line.connection, TlsSocket):
            line.connection.handshake()
        else:
            line.connection.send(b"")  # and with it, a header that comes before all else

    def begin(self, timeout: float) -> Socket:
        """Return a connection that is being made, and does not block.

        Over a UNIX socket, it is made when this returns; so long may it take that there is room in
        the server's queue.
        """
        family, address = self._address
        if family == socket.AF_UNIX:
            sock = connect(self._workload.host, 0, timeout)
            if self._workload.proxy_header:
                sock.sendall(proxy_header(self._workload.proxy_header, sock))
            sock.setblocking(False)
            return self._secure(sock)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        problem = sock.connect_ex(address)
        if problem not in {0, errno.EINPROGRESS}:
            sock.close()
            raise OSError(problem, os.strerror(problem))
        if self._workload.proxy_header:
            sock = cast("socket.socket", PrefacedSocket(sock, self._workload.proxy_header, address))
        return self._secure(sock)
