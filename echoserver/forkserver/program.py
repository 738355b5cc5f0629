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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from echoserver.conversation.connection import Connection
from echoserver.conversation.failures import describe, tls_failed
from echoserver.drivers.blocking import BlockedThread
from echoserver.forkserver.messages import (
    ENDED,
    FAILED,
    LONGEST,
    MESSAGE,
    PING,
    PONG,
    PREPARE,
    READY,
    REFUSED,
    SERVE,
    SIGNAL,
    UNUSABLE,
)
from echoserver.forkserver.reports import Failure, Reports
from echoserver.handlers import Handler
from echoserver.lifecycle.state import RETIRE, State

# Plain figures, for the same reason.
_FOR_CHILDREN = (int(signal.SIGTERM), int(RETIRE))
_UNBLOCK = int(signal.SIG_UNBLOCK)
# What is rehearsed.
_ECHO: dict[str, Any] = {
    "module": "echoserver.handlers.echo",
    "file": "",
    "class": "EchoHandler",
    "options": {},
    "tls": None,
}
# Of the rehearsal: more than it takes Python to adapt code that runs, and code that loops.
_CONVERSATIONS = _MESSAGES = 20


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
        fork_server.confess(error)
    finally:
        os._exit(1)


def _die_with(lifeline: int) -> None:
    """Have this process's whole group killed when nobody holds the lifeline's other end."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)


class Settings:
    """How a connection is to be served; what `Connection` reads of a server's configuration."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.idle_timeout: float = told["idle_timeout"]
        self.write_timeout: float = told["write_timeout"]
        self.handshake_timeout: float = told["handshake_timeout"]
        self.drain_timeout: float = told["drain_timeout"]
        self.secure = _secure(told["tls"]) if told["tls"] else None
        sys.path[:] = told["path"]
        found: Any = _module(told["module"], told["file"])
        for attribute in told["class"].split("."):
            found = getattr(found, attribute)
        options = told["options"]
        self.make_handler: Callable[[], Handler] = partial(found, **options) if options else found


def _secure(credentials: tuple[bytes, bytes, bytes | None]) -> Callable[[socket.socket], Any]:
    from echoserver.conversation.credentials import Credentials  # large, and rarely needed
    from echoserver.conversation.tls import TlsServer

    return TlsServer(Credentials(*credentials))


def _module(name: str, file: str) -> Any:
    try:
        return _import(name, file)
    except ModuleNotFoundError:
        import site  # what is installed for development may be found by hooks that site installs

        site.main()
        return _import(name, file)


def _import(name: str, file: str) -> Any:
    if not file:
        return import_module(name)
    from echoserver.plugins import import_file

    return import_file(name, file)


class _ForkServer:
    def __init__(self, control: socket.socket, reports: Reports) -> None:
        self._control = control
        self._reports = reports
        self._host: Alone | None = None
        """Made once; each child has, by being forked, a copy of its own."""
        self._conversation: _Conversation | None = None
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
            state.retiring = state.retiring or number == RETIRE
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
                    self._obey()

    def _obey(self) -> None:
        message, ancillary, _, _ = self._control.recvmsg(LONGEST, 64)
        if not message:
            self._end()
        kind, number, figure = MESSAGE.unpack_from(message)
        if kind == SERVE and ancillary:
            self._serve(number, int.from_bytes(ancillary[0][2], sys.byteorder))
        elif kind == SERVE:  # the socket was lost on the way: no descriptor was free for it
            self._tell(REFUSED, number, errno.EMFILE)
        elif kind == PING:
            self._tell(PONG, 0)
        elif kind == SIGNAL:
            if number in self._pids:  # or it has just ended
                os.kill(self._pids[number], figure)
        elif kind == PREPARE and not ancillary:
            self._tell(UNUSABLE, 0, 0, b"the fork server has no descriptor free")
        elif kind == PREPARE:
            with open(int.from_bytes(ancillary[0][2], sys.byteorder), "rb") as file:  # noqa: PTH123 - a descriptor
                self._prepare(marshal.load(file))  # noqa: S302 - the server wrote it

    def _prepare(self, told: dict[str, Any]) -> None:
        try:
            host = Alone(Settings(told))
            conversation = _Conversation(host)
        except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way
            self._tell(UNUSABLE, 0, 0, _text(error))
            return
        if self._conversation is not None:
            self._conversation.close()
        self._host, self._conversation = host, conversation
        with suppress(OSError):  # no descriptor is free: then without
            self._rehearse(Settings(told | _ECHO))
        # Or the first collection in a child would touch, and so copy, every page.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._tell(READY, 0)

    def _serve(self, number: int, fd: int) -> None:
        assert self._conversation is not None  # noqa: S101 - "prepare" comes first
        self._conversation.take(fd)
        try:
            pid = os.fork()
        except OSError as error:  # the system has no process left
            self._tell(REFUSED, number, error.errno or 0)
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
            self._tell(ENDED, number)

    def _tell(self, kind: int, number: int, figure: int = 0, more: bytes = b"") -> None:
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

    def confess(self, error: BaseException) -> None:
        """Tell the server of what should not have happened, if it can be told at all."""
        with suppress(OSError):
            message = MESSAGE.pack(FAILED, 0, 0) + _text(error)
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
                self._control.send(MESSAGE.pack(ENDED, number, 0))
        finally:
            os._exit(0)

    # -- the child -----------------------------------------------------------------------------

    def _live(self, number: int, conversation: "_Conversation") -> NoReturn:
        """Serve one connection, and end.

        The descriptors of the fork server stay open, for to close them is more than to keep them;
        a signal here wakes it, in vain.
        """
        try:
            pthread_sigmask(_UNBLOCK, _FOR_CHILDREN)
            conversation.hold(self._reports, number)
        finally:
            os._exit(0)  # that closes the socket; whatever else there is belongs to the parent

    def _rehearse(self, settings: Settings) -> None:
        """Do here, a few times, what children are going to do.

        Code that has run is adapted to what it met (PEP 659). A child would do that anew, in
        copies of its own of the pages that hold the code.
        """
        host = Alone(settings)
        for _ in range(_CONVERSATIONS):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                for _ in range(_MESSAGES):
                    theirs.send(b"one, two")
                theirs.shutdown(socket.SHUT_WR)
                conversation = _Conversation(host)
                conversation.take(ours.detach())
                conversation.hold(self._reports, self._reports.spare)
                conversation.close()
        self._reports.take(self._reports.spare)


class _Conversation:
    """All that a child needs for its connection, but for the client's socket.

    It is made before the fork, which copies it: what a child need not make, it need not touch
    pages for. A client's socket takes the place of the one that it was made with (dup2(2)).
    """

    def __init__(self, host: "Alone") -> None:
        self._host = host
        self._nobody = socket.socket()
        self._sock = self._nobody.dup()
        self._connection = Connection(self._sock, None, host)
        self._thread = BlockedThread(self._connection, host.lifecycle)

    def take(self, fd: int) -> None:
        """Let it be with a client, until `leave`."""
        os.dup2(fd, self._sock.fileno(), inheritable=False)
        os.close(fd)

    def leave(self) -> None:
        """Close our copy of the client's socket."""
        os.dup2(self._nobody.fileno(), self._sock.fileno(), inheritable=False)

    def close(self) -> None:
        """Nobody will need it."""
        self._sock.close()
        self._nobody.close()

    def hold(self, reports: Reports, number: int) -> None:
        """Serve it to its end, and report."""
        connection = self._connection
        self._thread.run()
        reports.write(
            number,
            connection.bytes_in,
            connection.bytes_out,
            connection.bytes_discarded,
            connection.outcome,
            self._host.failures,
        )


def _text(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "backslashreplace")


class Alone:
    """What a connection needs of its service, where it is the only one."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.make_handler = config.make_handler
        self.secure = config.secure
        self.lifecycle = State(config.drain_timeout)
        self.failures: list[Failure] = []

    def report_failure(self, event: str, error: BaseException) -> None:
        """Keep it for the server, which has a log."""
        self.failures.append((event, describe(self.make_handler, error)))

    def report_tls_failure(self, _connection: Connection, reason: str) -> None:
        """Likewise."""
        self.failures.append(tls_failed(reason))

    def refuse(self, connection: Connection, error: BaseException) -> None:
        """Nothing is started here for a connection but the child that is running already."""
        self.report_failure("client_refused", error)
        self.release(connection)

    def release(self, connection: Connection) -> None:
        """Leave it to the end of the process; slot and totals are the server's."""
