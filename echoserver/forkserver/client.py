"""The server's side of the fork server: starting it, and passing connections to it."""

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
from echoserver.forkserver.messages import MAX_MESSAGE_SIZE, MESSAGE, Kind
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
_SEND_BUFFER_SIZE = 8 * 1024  # bytes
_SEND_TIMEOUT = 5.0  # seconds that it may take no message
_POLL_INTERVAL = 0.1  # seconds between two checks for an abort
_FINAL_MESSAGE_TIMEOUT = 1.0  # seconds to wait for each of its last messages
# The fork server gets pings, and is replaced after so many unanswered ones in a row. Pings are
# counted, not seconds: in a suspended container, neither side has time to run.
_PING_INTERVAL = 2.0  # seconds
_MAX_UNANSWERED = 5
_MAX_UNANSWERED_PREPARING = 30  # while it loads a handler, which may be slow


class ForkServer:
    """Serves each connection in a process of its own, which the fork server forks.

    Raises:
        BootError: The fork server cannot be started, or cannot load the handler.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        try:
            self._report_file = Reports.create_file(service.limit)
            self._reports = Reports(self._report_file)
        except (OSError, ValueError) as error:
            raise BootError(f"not enough memory for the children's reports: {error}") from None
        self._free_numbers: list[int] = []  # those that were in use before
        self._number_count = 0
        self._connections: dict[int, Connection] = {}  # by the number of the child
        self._alive = False
        self._hangs = False
        self._unanswered = 0
        self._preparing = False
        self._start()
        service.lifecycle.every(_PING_INTERVAL, self._send_heartbeat)

    def serve(self, connection: Connection) -> None:
        """Have a child serve `connection` to its end."""
        number = self._reserve()
        try:
            if not self._alive:
                self._start()
            if self._service.config is not self._config:
                self._prepare()
            # The child needs a blocking socket, whatever socket.setdefaulttimeout says here.
            connection.sock.setblocking(True)
            self._send(Kind.SERVE, number, descriptor=connection.sock.fileno())
        except (OSError, BootError) as error:  # it has died, or could not be replaced
            self._free_numbers.append(number)
            connection.refuse(error)
            return
        self._connections[number] = connection
        # This closes our copy of the socket: while it is open, the client never sees the child's
        # FIN.
        connection.delegate(terminate=partial(self._terminate, number))

    def close(self) -> None:
        """End the remaining children and the fork server."""
        if self._alive:
            self._unwatch()
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
                self._control.settimeout(0.0 if self._hangs else _FINAL_MESSAGE_TIMEOUT)
                while message := self._control.recv(MAX_MESSAGE_SIZE):
                    self._handle(message)
            self._end_process()
        os.close(self._report_file)

    # -- the process ---------------------------------------------------------------------------

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Full when some twenty connections wait for their fork, so that the server accepts no
        # faster than children are forked.
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_SIZE)
        lifeline, self._lifeline = os.pipe2(os.O_CLOEXEC)
        descriptors = [theirs.fileno(), lifeline, self._report_file]
        arguments = [_HOME, *map(str, descriptors), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                # -S: the hooks of site must not add to its memory.
                [sys.executable, *_FLAGS, "-P", "-s", "-S", "-c", _PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                process_group=0,
            )
        except OSError as error:
            self._control.close()
            os.close(self._lifeline)
            raise BootError(f"cannot start the fork server: {error.strerror}") from None
        finally:
            theirs.close()
            os.close(lifeline)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._hangs = False
        self._await_ready()
        self._unanswered, self._preparing = 0, False
        self._alive = True
        self._service.lifecycle.watch(self._control.fileno(), self._receive)
        self._service.lifecycle.watch(self._pidfd, self._on_death)

    def _await_ready(self) -> None:
        """Wait until the fork server has loaded the handler, for as long as it lives."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        answer = b""
        try:
            self._prepare()
            while not poll.poll(_POLL_INTERVAL * 1000) and not self._service.lifecycle.killed:
                pass
            answer = self._control.recv(MAX_MESSAGE_SIZE, socket.MSG_DONTWAIT)
        except OSError as error:
            answer = answer or MESSAGE.pack(Kind.FAILED, 0, 0) + str(error).encode()
        if not answer or MESSAGE.unpack_from(answer)[0] != Kind.READY:
            self._end_process()
            source = self._service.config.source("handler")
            raise BootError(f"{source}: the fork server cannot load it: {_text(answer)}")

    def _prepare(self) -> None:
        """Tell the fork server how to serve from now on."""
        config, make_handler = self._service.config, self._service.make_handler
        secure = self._service.secure
        location, attribute = locate_handler(config.handler)
        module, file = location, ""
        if is_file(location):
            module, file = plugin_name(location), str(Path(location).absolute())
        elif location == "__main__":  # in the fork server, that name is its own program's
            module, file = "__echoserver_main__", getattr(sys.modules[location], "__file__", "")
        request = {
            "path": list(map(str, sys.path)),
            "module": module,
            "file": file,
            "class": attribute,
            "options": make_handler.keywords if isinstance(make_handler, partial) else {},
            "idle_timeout": config.idle_timeout,
            "write_timeout": config.write_timeout,
            "handshake_timeout": config.handshake_timeout,
            "tls": astuple(secure.credentials) if secure is not None else None,
            "drain_timeout": config.drain_timeout,
        }
        self._reports.drain_timeout = config.drain_timeout
        with open(os.memfd_create("settings"), "w+b") as memory:  # noqa: PTH123 - a descriptor
            marshal.dump(request, memory)
            memory.flush()
            memory.seek(0)
            self._send(Kind.PREPARE, 0, descriptor=memory.fileno())
        self._preparing = True
        self._config: Config = config  # which it was last prepared for

    def _end_process(self) -> None:
        """Kill the fork server, and close the lifeline, which ends its remaining children."""
        self._control.close()
        os.close(self._lifeline)
        os.close(self._pidfd)
        self._process.kill()
        self._process.wait()

    def _on_death(self) -> None:
        """Clean up after the fork server, which has died with its children.

        The next connection starts another fork server.
        """
        self._service.log.error_each_second("fork_server_died", connections=len(self._connections))
        self._alive = False
        self._unwatch()
        self._receive()  # its last messages
        self._end_process()
        for number in list(self._connections):
            self._on_child_end(number)

    def _send_heartbeat(self) -> None:
        """Send a ping, or kill the fork server if too many are unanswered: it is replaced."""
        if not self._alive or self._hangs:
            return
        if self._unanswered >= (_MAX_UNANSWERED_PREPARING if self._preparing else _MAX_UNANSWERED):
            self._hangs = True
            self._service.log.error(
                "fork_server_hangs",
                seconds=self._unanswered * _PING_INTERVAL,
                connections=len(self._connections),
            )
            self._process.kill()  # `_on_death` follows
            return
        self._unanswered += 1
        with suppress(OSError):  # it takes no message, which leaves this one unanswered, or it died
            self._control.send(MESSAGE.pack(Kind.PING, 0, 0), socket.MSG_DONTWAIT)

    def _unwatch(self) -> None:
        self._service.lifecycle.forget(self._control.fileno())
        self._service.lifecycle.forget(self._pidfd)

    def _reserve(self) -> int:
        if self._free_numbers:
            return self._free_numbers.pop()
        self._number_count += 1
        return self._number_count - 1

    # -- messages ------------------------------------------------------------------------------

    def _send(
        self, kind: Kind, number: int, figure: int = 0, descriptor: int | None = None
    ) -> None:
        """Send a message, once there is room for it.

        Raises:
            OSError: The fork server has died, or hangs.
        """
        message = [MESSAGE.pack(kind, number, figure)]
        rights = []
        if descriptor is not None:
            data = descriptor.to_bytes(4, sys.byteorder)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)]
        deadline = time.monotonic() + _SEND_TIMEOUT
        while not self._hangs:
            try:
                self._control.sendmsg(message, rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._hangs = self._service.lifecycle.killed or time.monotonic() > deadline
                poll = select.poll()
                poll.register(self._control, select.POLLOUT)
                poll.poll(_POLL_INTERVAL * 1000)
            else:
                return
        self._process.kill()
        raise TimeoutError("the fork server does not answer")

    def _terminate(self, number: int) -> None:
        lifecycle = self._service.lifecycle
        stop_signal = DRAIN_SIGNAL if lifecycle.retiring else signal.SIGTERM
        # A connection that only makes room for others has unlimited time for what it is owed.
        self._reports.drain_timeout = 0.0 if lifecycle.running else lifecycle.drain_timeout
        with suppress(OSError):  # the fork server has died, and the child with it
            self._send(Kind.SIGNAL, number, stop_signal)

    def _receive(self) -> None:
        """Handle all messages that have arrived from the fork server."""
        while True:
            try:
                message = self._control.recv(MAX_MESSAGE_SIZE, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not message:  # it has died, and `_on_death` follows
                return
            self._handle(message)

    def _handle(self, message: bytes) -> None:
        kind, number, figure = MESSAGE.unpack_from(message)
        self._unanswered = 0
        if kind in {Kind.READY, Kind.UNUSABLE}:
            self._preparing = False
        if kind == Kind.ENDED:
            self._on_child_end(number)
        elif kind == Kind.REFUSED:
            self._free_numbers.append(number)
            self._connections.pop(number).refuse(OSError(figure, os.strerror(figure)))
        elif kind == Kind.UNUSABLE:
            self._service.log.error("reload_failed", reason=_text(message))
        elif kind == Kind.FAILED:
            self._service.log.error_each_second("fork_server_failed", reason=_text(message))

    def _on_child_end(self, number: int) -> None:
        """Take over the report of a child that has ended, and free its number."""
        connection = self._connections.pop(number)
        figures, outcome, failures = self._reports.take(number)
        self._free_numbers.append(number)
        connection.bytes_in, connection.bytes_out, connection.bytes_discarded = figures
        default = Outcome.RESET if self._service.lifecycle.running else Outcome.CUT
        connection.record_outcome(Outcome(outcome) if outcome else connection.outcome or default)
        for event, details in failures:
            self._service.report(connection, event, details)
        connection.release()


def _text(message: bytes) -> str:
    return message[MESSAGE.size :].decode("utf-8", "replace") or "it died"
