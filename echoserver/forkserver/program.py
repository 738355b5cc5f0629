"""The fork server's program, which forks a child for every connection that it receives.

Keep its imports few, and a child's work short: each page that is written to after a fork has to be
copied.
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

# The wrapper in `signal` would touch 40 more pages in every child.
from _signal import pthread_sigmask  # type: ignore[import-not-found]
from collections import deque
from contextlib import suppress
from typing import Any, NoReturn

from echoserver.forkserver.child import ECHO, ChildHost, PreparedConversation, Settings, rehearse
from echoserver.forkserver.messages import MAX_MESSAGE_SIZE, MESSAGE, Kind
from echoserver.forkserver.reports import Reports
from echoserver.lifecycle.state import DRAIN_SIGNAL

# Integers instead of enum members, for the same reason.
_CHILD_SIGNALS = (int(signal.SIGTERM), int(DRAIN_SIGNAL))

_UNBLOCK = int(signal.SIG_UNBLOCK)


def main(control: int, lifeline: int, reports: int, server: int) -> NoReturn:
    """Fork a child for each connection that comes over `control`, until its other end is closed.

    Args:
        control: Descriptor of the socket to the server.
        lifeline: Descriptor of a pipe that the server holds open.
        reports: Descriptor of the shared memory in which children report.
        server: The server's process ID.
    """
    _kill_group_with(lifeline)
    if os.getppid() != server:  # the server died before the line above
        os._exit(1)
    fork_server = _ForkServer(socket.socket(fileno=control), Reports(reports))
    fork_server.install_signals()
    try:
        fork_server.run()
    except BaseException as error:  # noqa: BLE001 - sent to the server: stderr may be full
        fork_server.report_fatal(error)
    finally:
        os._exit(1)


def _kill_group_with(lifeline: int) -> None:
    """Have the kernel kill this process's group when the lifeline's other end is closed."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)


class _ForkServer:
    def __init__(self, control: socket.socket, reports: Reports) -> None:
        self._control = control
        self._reports = reports
        self._host: ChildHost | None = None
        """Made before any fork, so that each child has a copy of its own."""
        self._conversation: PreparedConversation | None = None
        """Made before any fork, too."""
        self._pids: dict[int, int] = {}  # number of a child → process ID
        self._numbers: dict[int, int] = {}  # process ID of a child → number
        self._queue: deque[bytes] = deque()  # messages to the server
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # -- signals -------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Install the signal handlers of this process, which its children inherit.

        Installing others after the fork would cost each child time.
        """
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, self._on_child)
        for number in _CHILD_SIGNALS:
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the server decides what they mean
        # The fork server itself blocks them, because it ends when the server closes the connection.
        # Its children unblock them when they are complete, because Python forgets at a fork which
        # signals have arrived, so an earlier one would be lost.
        signal.pthread_sigmask(signal.SIG_SETMASK, _CHILD_SIGNALS)

    def _on_child(self, _number: int, _frame: Any) -> None:
        """Do nothing: Python has written to the wake-up pipe, which is all that is needed."""

    def _on_stop_signal(self, number: int, _frame: Any) -> None:
        """Drain, in a child."""
        if self._host is not None:
            state = self._host.lifecycle
            state.retiring = state.retiring or number == DRAIN_SIGNAL
            state.drain_timeout = self._reports.drain_timeout
            state.begin_drain()
            state.interrupt()

    def _on_alarm(self, _number: int, _frame: Any) -> None:
        if self._host is not None:
            self._host.lifecycle.interrupt()

    # -- the parent ----------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Carry out the server's requests until it closes the connection."""
        control, wakeup = self._control.fileno(), self._wakeup
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(control, select.POLLIN)
        while True:
            if self._queue:
                poll.modify(control, select.POLLIN | select.POLLOUT)
            for fd, events in poll.poll():
                if fd == wakeup:
                    os.read(wakeup, 65536)
                    self._reap()
                elif events & select.POLLOUT:
                    poll.modify(control, select.POLLIN)
                    self._flush()
                else:
                    self._handle_request()

    def _handle_request(self) -> None:
        message, ancillary, _, _ = self._control.recvmsg(MAX_MESSAGE_SIZE, 64)
        if not message:
            self._end()
        kind, number, figure = MESSAGE.unpack_from(message)
        if kind == Kind.SERVE and ancillary:
            self._serve(number, int.from_bytes(ancillary[0][2], sys.byteorder))
        elif kind == Kind.SERVE:  # the kernel dropped the socket: no descriptor was free for it
            self._send(Kind.REFUSED, number, errno.EMFILE)
        elif kind == Kind.PING:
            self._send(Kind.PONG, 0)
        elif kind == Kind.SIGNAL:
            if number in self._pids:  # if not, the child has just ended
                os.kill(self._pids[number], figure)
        elif kind == Kind.PREPARE and not ancillary:
            self._send(Kind.UNUSABLE, 0, 0, b"the fork server has no descriptor free")
        elif kind == Kind.PREPARE:
            with open(int.from_bytes(ancillary[0][2], sys.byteorder), "rb") as file:  # noqa: PTH123 - a descriptor
                self._prepare(marshal.load(file))  # noqa: S302 - the server wrote it

    def _prepare(self, request: dict[str, Any]) -> None:
        try:
            host = ChildHost(Settings(request))
            conversation = PreparedConversation(host)
        except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way
            self._send(Kind.UNUSABLE, 0, 0, _text(error))
            return
        if self._conversation is not None:
            self._conversation.close()
        self._host, self._conversation = host, conversation
        with suppress(OSError):  # without a free descriptor, there is no rehearsal
            rehearse(Settings(request | ECHO), self._reports)
        # Otherwise the first garbage collection in a child would write to, and so copy, every page.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._send(Kind.READY, 0)

    def _serve(self, number: int, fd: int) -> None:
        assert self._conversation is not None  # noqa: S101 - "prepare" comes first
        self._conversation.attach(fd)
        try:
            pid = os.fork()
        except OSError as error:  # the system has no process left
            self._send(Kind.REFUSED, number, error.errno or 0)
        else:
            if pid == 0:
                self._run_child(number, self._conversation)
            self._pids[number] = pid
            self._numbers[pid] = number
        self._conversation.detach()  # while a copy is open, the client never sees the child's FIN

    def _reap(self) -> None:
        """Reap the children that have ended, and report them to the server."""
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if (number := self._numbers.pop(pid, None)) is None:
                continue  # a plugin started this process when it was imported
            del self._pids[number]
            self._send(Kind.ENDED, number)

    def _send(self, kind: Kind, number: int, figure: int = 0, text: bytes = b"") -> None:
        """Send a message, or queue it until there is room.

        To wait for room could be a deadlock, because the server waits for room in the same way.
        """
        self._queue.append(MESSAGE.pack(kind, number, figure) + text)
        self._flush()

    def _flush(self) -> None:
        while self._queue:
            try:
                self._control.send(self._queue[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # the server is gone
                self._end()
            self._queue.popleft()

    def report_fatal(self, error: BaseException) -> None:
        """Send the server a description of a fatal error, if the socket takes it."""
        with suppress(OSError):
            message = MESSAGE.pack(Kind.FAILED, 0, 0) + _text(error)
            self._control.send(message, socket.MSG_DONTWAIT)

    def _end(self) -> NoReturn:
        """Kill the remaining children and report their ends, once the server has closed."""
        for pid in self._numbers:
            os.kill(pid, signal.SIGKILL)
        try:
            for message in self._queue:
                self._control.send(message)
            for pid, number in self._numbers.items():
                os.waitpid(pid, 0)
                self._control.send(MESSAGE.pack(Kind.ENDED, number, 0))
        finally:
            os._exit(0)

    # -- the child -----------------------------------------------------------------------------

    def _run_child(self, number: int, conversation: "PreparedConversation") -> NoReturn:
        """Serve one connection, and exit.

        The fork server's descriptors stay open, because closing them costs more than keeping them.
        So a signal in the child wakes the fork server too, which does no harm.
        """
        try:
            pthread_sigmask(_UNBLOCK, _CHILD_SIGNALS)
            conversation.serve(self._reports, number)
        finally:
            os._exit(0)  # this closes the socket; all other clean-up belongs to the parent


def _text(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "backslashreplace")
