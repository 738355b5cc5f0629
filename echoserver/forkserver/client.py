"""The server's side of the fork server."""

import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from pathlib import Path

from echoserver.config import Config
from echoserver.conversation.connection import Connection
from echoserver.errors import BootError
from echoserver.forkserver.messages import LONGEST, MESSAGE, Kind
from echoserver.forkserver.reports import Reports
from echoserver.lifecycle.state import DRAIN_SIGNAL
from echoserver.outcome import Outcome
from echoserver.plugins import is_file, locate_handler, plugin_name
from echoserver.service import Service

_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from echoserver.forkserver.program import main; main(*map(int, sys.argv[2:]))"
)
_HOME = str(Path(__file__).resolve().parents[2])
_FLAGS = ["-O"] * sys.flags.optimize + ["-B"] * sys.flags.dont_write_bytecode
_ROOM_FOR_ORDERS = 8 * 1024
_PATIENCE = 5.0  # seconds in which it takes no order
_STEP = 0.1  # seconds between two looks at whether we are to leave at once
_END_PATIENCE = 1.0  # seconds between two of its last words
# It is asked whether it lives, and replaced when it has not answered so many times in a row.
# Questions are counted, not seconds: a suspended container has no time for either of both.
_PING_INTERVAL = 2.0  # seconds
_MAX_UNANSWERED = 5
_MAX_UNANSWERED_PREPARING = 30  # while it loads a handler, which may take its time


class ForkServer:
    """Serves each connection in a process of its own, forked by one that is good at it.

    Raises:
        BootError: It cannot be started, or cannot load the handler.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        try:
            self._report_file = Reports.room_for(service.limit)
            self._reports = Reports(self._report_file)
        except (OSError, ValueError) as error:
            raise BootError(f"no memory for the reports of so many children: {error}") from None
        self._free: list[int] = []  # numbers that were used before
        self._used = 0
        self._served: dict[int, Connection] = {}
        self._alive = False
        self._hangs = False
        self._unanswered = 0
        self._preparing = False
        self._start()
        service.lifecycle.every(_PING_INTERVAL, self._send_heartbeat)

    def serve(self, connection: Connection) -> None:
        """Have a child serve this connection to its end."""
        number = self._reserve()
        try:
            if not self._alive:
                self._start()
            if self._service.config is not self._prepared_for:
                self._prepare()
            # Whatever socket.setdefaulttimeout says in this program.
            connection.sock.setblocking(True)
            self._order(Kind.SERVE, number, descriptor=connection.sock.fileno())
        except (OSError, BootError) as error:  # it has died, or there is still no other one
            self._free.append(number)
            connection.refuse(error)
            return
        self._served[number] = connection
        # This closes our copy: while it is open, the client never sees the child's FIN.
        connection.handed_over(terminate=partial(self._terminate, number))

    def close(self) -> None:
        """End the children that are left, and the fork server."""
        if self._alive:
            self._forget()
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
                self._control.settimeout(0.0 if self._hangs else _END_PATIENCE)
                while message := self._control.recv(LONGEST):
                    self._handle(message)
            self._let_go()
        os.close(self._report_file)

    # -- the process ---------------------------------------------------------------------------

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Full when some twenty wait for their fork: accepting goes no faster than forking.
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM_FOR_ORDERS)
        lifeline, self._lifeline = os.pipe2(os.O_CLOEXEC)
        passed = [theirs.fileno(), lifeline, self._report_file]
        arguments = [_HOME, *map(str, passed), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                # -S: site's hooks must not add to what it has in memory.
                [sys.executable, *_FLAGS, "-P", "-s", "-S", "-c", _PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                process_group=0,
            )
        except OSError as error:
            self._control.close()
            os.close(self._lifeline)
            raise BootError(f"cannot start the fork server: {error.strerror}") from None
        finally:
            theirs.close()
            os.close(lifeline)
        self._death = os.pidfd_open(self._process.pid)
        self._hangs = False
        self._await_ready()
        self._unanswered, self._preparing = 0, False
        self._alive = True
        self._service.lifecycle.watch(self._control.fileno(), self._receive)
        self._service.lifecycle.watch(self._death, self._on_death)

    def _await_ready(self) -> None:
        """Wait until it has loaded the handler, for as long as that takes and it lives."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._death, select.POLLIN)
        answer = b""
        try:
            self._prepare()
            while not poll.poll(_STEP * 1000) and not self._service.lifecycle.killed:
                pass
            answer = self._control.recv(LONGEST, socket.MSG_DONTWAIT)
        except OSError as error:
            answer = answer or MESSAGE.pack(Kind.FAILED, 0, 0) + str(error).encode()
        if not answer or MESSAGE.unpack_from(answer)[0] != Kind.READY:
            self._let_go()
            source = self._service.config.source("handler")
            raise BootError(f"{source}: the fork server cannot load it: {_text(answer)}")

    def _prepare(self) -> None:
        """Tell it how to serve from now on."""
        config, make = self._service.config, self._service.make_handler
        secure = self._service.secure
        location, attribute = locate_handler(config.handler)
        module, file = location, ""
        if is_file(location):
            module, file = plugin_name(location), str(Path(location).absolute())
        elif location == "__main__":  # which it has itself, and another one
            module, file = "__echoserver_main__", getattr(sys.modules[location], "__file__", "")
        how = {
            "path": list(map(str, sys.path)),
            "module": module,
            "file": file,
            "class": attribute,
            "options": make.keywords if isinstance(make, partial) else {},
            "idle_timeout": config.idle_timeout,
            "write_timeout": config.write_timeout,
            "handshake_timeout": config.handshake_timeout,
            "tls": astuple(secure.credentials) if secure is not None else None,
            "drain_timeout": config.drain_timeout,
        }
        self._reports.drain_timeout = config.drain_timeout
        with open(os.memfd_create("settings"), "w+b") as memory:  # noqa: PTH123 - a descriptor
            marshal.dump(how, memory)
            memory.flush()
            memory.seek(0)
            self._order(Kind.PREPARE, 0, descriptor=memory.fileno())
        self._preparing = True
        self._prepared_for: Config = config

    def _let_go(self) -> None:
        """End it; with it and the lifeline go the children that it may have left."""
        self._control.close()
        os.close(self._lifeline)
        os.close(self._death)
        self._process.kill()
        self._process.wait()

    def _on_death(self) -> None:
        """It has died, and its children with it; the next connection starts another one."""
        self._service.log.error_each_second("fork_server_died", connections=len(self._served))
        self._alive = False
        self._forget()
        self._receive()  # its last words
        self._let_go()
        for number in list(self._served):
            self._ended(number)

    def _send_heartbeat(self) -> None:
        """Send a heartbeat; end it where it has not answered the last ones: another one follows."""
        if not self._alive or self._hangs:
            return
        if self._unanswered >= (_MAX_UNANSWERED_PREPARING if self._preparing else _MAX_UNANSWERED):
            self._hangs = True
            self._service.log.error(
                "fork_server_hangs",
                seconds=self._unanswered * _PING_INTERVAL,
                connections=len(self._served),
            )
            self._process.kill()  # `_on_death` follows
            return
        self._unanswered += 1
        with suppress(OSError):  # it takes no order, which is no answer, or it has just died
            self._control.send(MESSAGE.pack(Kind.PING, 0, 0), socket.MSG_DONTWAIT)

    def _forget(self) -> None:
        self._service.lifecycle.forget(self._control.fileno())
        self._service.lifecycle.forget(self._death)

    def _reserve(self) -> int:
        if self._free:
            return self._free.pop()
        self._used += 1
        return self._used - 1

    # -- what is said --------------------------------------------------------------------------

    def _order(
        self, kind: Kind, number: int, figure: int = 0, descriptor: int | None = None
    ) -> None:
        """Send a message, once there is room for it.

        Raises:
            OSError: It has died, or does nothing any more.
        """
        message = [MESSAGE.pack(kind, number, figure)]
        rights = []
        if descriptor is not None:
            data = descriptor.to_bytes(4, sys.byteorder)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)]
        give_up = time.monotonic() + _PATIENCE
        while not self._hangs:
            try:
                self._control.sendmsg(message, rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._hangs = self._service.lifecycle.killed or time.monotonic() > give_up
                poll = select.poll()
                poll.register(self._control, select.POLLOUT)
                poll.poll(_STEP * 1000)
            else:
                return
        self._process.kill()
        raise TimeoutError("the fork server does not answer")

    def _terminate(self, number: int) -> None:
        lifecycle = self._service.lifecycle
        which = DRAIN_SIGNAL if lifecycle.retiring else signal.SIGTERM
        # Who is to make room for others has all the time that what it is owed takes.
        self._reports.drain_timeout = 0.0 if lifecycle.running else lifecycle.drain_timeout
        with suppress(OSError):  # the fork server has died, and the child with it
            self._order(Kind.SIGNAL, number, which)

    def _receive(self) -> None:
        """Take note of what happened to the children."""
        while True:
            try:
                message = self._control.recv(LONGEST, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not message:  # it has died, which `_on_death` is told by itself
                return
            self._handle(message)

    def _handle(self, message: bytes) -> None:
        kind, number, figure = MESSAGE.unpack_from(message)
        self._unanswered = 0
        if kind in {Kind.READY, Kind.UNUSABLE}:
            self._preparing = False
        if kind == Kind.ENDED:
            self._ended(number)
        elif kind == Kind.REFUSED:
            self._free.append(number)
            self._served.pop(number).refuse(OSError(figure, os.strerror(figure)))
        elif kind == Kind.UNUSABLE:
            self._service.log.error("reload_failed", reason=_text(message))
        elif kind == Kind.FAILED:
            self._service.log.error_each_second("fork_server_failed", reason=_text(message))

    def _ended(self, number: int) -> None:
        """Take over what a child did, and free its place."""
        connection = self._served.pop(number)
        figures, said, failures = self._reports.take(number)
        self._free.append(number)
        connection.bytes_in, connection.bytes_out, connection.bytes_discarded = figures
        killed = Outcome.RESET if self._service.lifecycle.running else Outcome.CUT
        connection.left(Outcome(said) if said else connection.outcome or killed)
        for event, about in failures:
            self._service.report(connection, event, about)
        connection.release()


def _text(message: bytes) -> str:
    return message[MESSAGE.size :].decode("utf-8", "replace") or "it died"
