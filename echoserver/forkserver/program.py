"""The process that forks a child for every connection that it is given.

Keep what is imported here small, and what a child does short: each page that is touched after a
fork is a page to be copied.
"""

import errno
import fcntl
import gc
import marshal
import os
import select
import signal
import socket
import sys

# What `signal` wraps around it would touch 40 pages more in every child.
from _signal import pthread_sigmask  # type: ignore[import-not-found]
from collections import deque
from contextlib import suppress
from typing import Any, NoReturn

from echoserver.forkserver.child import ECHO, ChildHost, PreparedConversation, Settings, rehearse
from echoserver.forkserver.messages import LONGEST, MESSAGE, Kind
from echoserver.forkserver.reports import Reports
from echoserver.lifecycle.state import DRAIN_SIGNAL

# Plain figures, for the same reason.
_FOR_CHILDREN = (int(signal.SIGTERM), int(DRAIN_SIGNAL))

_UNBLOCK = int(signal.SIG_UNBLOCK)


def main(control: int, lifeline: int, reports: int, server: int) -> NoReturn:
    """Fork a child for each connection that comes over `control`, until its other end is closed.

    Args:
        control: Descriptor of the socket to the server.
        lifeline: Descriptor of a pipe that the server holds open.
        reports: Descriptor of the memory in which children report.
        server: The server's process.
    """
    _die_with(lifeline)
    if os.getppid() != server:  # it died before the line above
        os._exit(1)
    fork_server = _ForkServer(socket.socket(fileno=control), Reports(reports))
    fork_server.install_signals()
    try:
        fork_server.run()
    except BaseException as error:  # noqa: BLE001 - it is told, and not written to stderr, which may be full
        fork_server.report_fatal(error)
    finally:
        os._exit(1)


def _die_with(lifeline: int) -> None:
    """Have this process's whole group killed when nobody holds the lifeline's other end."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)


class _ForkServer:
    def __init__(self, control: socket.socket, reports: Reports) -> None:
        self._control = control
        self._reports = reports
        self._host: ChildHost | None = None
        """Made once; each child has, by being forked, a copy of its own."""
        self._conversation: PreparedConversation | None = None
        """Likewise."""
        self._pids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._unsent: deque[bytes] = deque()
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # -- signals -------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Handle them here for the children too: to install others would cost each of them."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, self._on_child)
        for number in _FOR_CHILDREN:
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # what they mean is for the server to say
        # The fork server itself goes when it is told to. And what came to a child before it is
        # complete would be lost: Python forgets, after a fork, which signals have come.
        signal.pthread_sigmask(signal.SIG_SETMASK, _FOR_CHILDREN)

    def _on_child(self, _number: int, _frame: Any) -> None:
        """Python has written to the wake-up pipe, and that is all that is needed."""

    def _on_stop_signal(self, number: int, _frame: Any) -> None:
        """In a child: drain."""
        if self._host is not None:
            state = self._host.lifecycle
            state.retiring = state.retiring or number == DRAIN_SIGNAL
            state.drain_timeout = self._reports.drain_timeout
            state.drain()
            state.interrupt()

    def _on_alarm(self, _number: int, _frame: Any) -> None:
        if self._host is not None:
            self._host.lifecycle.interrupt()

    # -- the parent ----------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Do as the server says, until it has nothing more to say."""
        control, wakeup = self._control.fileno(), self._wakeup
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(control, select.POLLIN)
        while True:
            if self._unsent:
                poll.modify(control, select.POLLIN | select.POLLOUT)
            for fd, events in poll.poll():
                if fd == wakeup:
                    os.read(wakeup, 65536)
                    self._reap()
                elif events & select.POLLOUT:
                    poll.modify(control, select.POLLIN)
                    self._send_rest()
                else:
                    self._handle_request()

    def _handle_request(self) -> None:
        message, ancillary, _, _ = self._control.recvmsg(LONGEST, 64)
        if not message:
            self._end()
        kind, number, figure = MESSAGE.unpack_from(message)
        if kind == Kind.SERVE and ancillary:
            self._serve(number, int.from_bytes(ancillary[0][2], sys.byteorder))
        elif kind == Kind.SERVE:  # the socket was lost on the way: no descriptor was free for it
            self._tell(Kind.REFUSED, number, errno.EMFILE)
        elif kind == Kind.PING:
            self._tell(Kind.PONG, 0)
        elif kind == Kind.SIGNAL:
            if number in self._pids:  # or it has just ended
                os.kill(self._pids[number], figure)
        elif kind == Kind.PREPARE and not ancillary:
            self._tell(Kind.UNUSABLE, 0, 0, b"the fork server has no descriptor free")
        elif kind == Kind.PREPARE:
            with open(int.from_bytes(ancillary[0][2], sys.byteorder), "rb") as file:  # noqa: PTH123 - a descriptor
                self._prepare(marshal.load(file))  # noqa: S302 - the server wrote it

    def _prepare(self, told: dict[str, Any]) -> None:
        try:
            host = ChildHost(Settings(told))
            conversation = PreparedConversation(host)
        except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way
            self._tell(Kind.UNUSABLE, 0, 0, _text(error))
            return
        if self._conversation is not None:
            self._conversation.close()
        self._host, self._conversation = host, conversation
        with suppress(OSError):  # no descriptor is free: then without
            rehearse(Settings(told | ECHO), self._reports)
        # Or the first collection in a child would touch, and so copy, every page.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._tell(Kind.READY, 0)

    def _serve(self, number: int, fd: int) -> None:
        assert self._conversation is not None  # noqa: S101 - "prepare" comes first
        self._conversation.take(fd)
        try:
            pid = os.fork()
        except OSError as error:  # the system has no process left
            self._tell(Kind.REFUSED, number, error.errno or 0)
        else:
            if pid == 0:
                self._live(number, self._conversation)
            self._pids[number] = pid
            self._numbers[pid] = number
        self._conversation.leave()  # while a copy is open, the client never sees the child's FIN

    def _reap(self) -> None:
        """Collect the children that have ended."""
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if (number := self._numbers.pop(pid, None)) is None:
                continue  # a plugin's, who started it when it was imported
            del self._pids[number]
            self._tell(Kind.ENDED, number)

    def _tell(self, kind: Kind, number: int, figure: int = 0, more: bytes = b"") -> None:
        """Send it, or keep it until there is room: two that wait for each other wait for ever."""
        self._unsent.append(MESSAGE.pack(kind, number, figure) + more)
        self._send_rest()

    def _send_rest(self) -> None:
        while self._unsent:
            try:
                self._control.send(self._unsent[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # the server is gone
                self._end()
            self._unsent.popleft()

    def report_fatal(self, error: BaseException) -> None:
        """Tell the server of what should not have happened, if it can be told at all."""
        with suppress(OSError):
            message = MESSAGE.pack(Kind.FAILED, 0, 0) + _text(error)
            self._control.send(message, socket.MSG_DONTWAIT)

    def _end(self) -> NoReturn:
        """The server has no more to say: end the children that are left, and tell of them."""
        for pid in self._numbers:
            os.kill(pid, signal.SIGKILL)
        try:
            for message in self._unsent:
                self._control.send(message)
            for pid, number in self._numbers.items():
                os.waitpid(pid, 0)
                self._control.send(MESSAGE.pack(Kind.ENDED, number, 0))
        finally:
            os._exit(0)

    # -- the child -----------------------------------------------------------------------------

    def _live(self, number: int, conversation: "PreparedConversation") -> NoReturn:
        """Serve one connection, and end.

        The descriptors of the fork server stay open, for to close them is more than to keep them;
        a signal here wakes it, in vain.
        """
        try:
            pthread_sigmask(_UNBLOCK, _FOR_CHILDREN)
            conversation.hold(self._reports, number)
        finally:
            os._exit(0)  # that closes the socket; whatever else there is belongs to the parent


def _text(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "backslashreplace")
