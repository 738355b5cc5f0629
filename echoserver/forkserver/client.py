"""The server's side of the fork server: which connection each child has, and what it reports."""

import marshal
import os
import signal
import sys
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from pathlib import Path

from echoserver.config import Config
from echoserver.conversation.connection import Connection
from echoserver.errors import BootError
from echoserver.forkserver.messages import MESSAGE, Kind
from echoserver.forkserver.process import ForkServerProcess
from echoserver.forkserver.reports import Reports
from echoserver.lifecycle.state import DRAIN_SIGNAL
from echoserver.outcome import Outcome
from echoserver.plugins import is_file, locate_handler, plugin_name
from echoserver.service import Service

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
        self._free_numbers: list[int] = []  # child numbers to reuse
        self._number_count = 0
        self._connections: dict[int, Connection] = {}  # by the number of the child
        self._alive = False
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
            self._process.send(Kind.SERVE, number, descriptor=connection.sock.fileno())
        except (OSError, BootError) as error:  # the fork server has died, or could not be replaced
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
            for message in self._process.final_messages():
                self._handle(message)
            self._process.end()
        os.close(self._report_file)

    # -- the process ---------------------------------------------------------------------------

    def _start(self) -> None:
        lifecycle = self._service.lifecycle
        self._process = ForkServerProcess(self._report_file, lifecycle)
        self._await_ready()
        self._unanswered, self._preparing = 0, False
        self._alive = True
        lifecycle.watch(self._process.control.fileno(), self._receive)
        lifecycle.watch(self._process.pidfd, self._on_death)

    def _await_ready(self) -> None:
        """Wait until the fork server has loaded the handler, for as long as it lives."""
        answer = b""
        try:
            self._prepare()
            answer = self._process.await_message()
        except OSError as error:
            answer = MESSAGE.pack(Kind.FAILED, 0, 0) + str(error).encode()
        if not answer or MESSAGE.unpack_from(answer)[0] != Kind.READY:
            self._process.end()
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
        elif location == "__main__":  # in the fork server, `__main__` is its own program
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
            self._process.send(Kind.PREPARE, 0, descriptor=memory.fileno())
        self._preparing = True
        self._config: Config = config  # the configuration that the fork server last received

    def _on_death(self) -> None:
        """Clean up after the fork server, which has died with its children.

        The next connection starts another fork server.
        """
        self._service.log.error_each_second("fork_server_died", connections=len(self._connections))
        self._alive = False
        self._unwatch()
        self._receive()  # its last messages
        self._process.end()
        for number in list(self._connections):
            self._on_child_end(number)

    def _send_heartbeat(self) -> None:
        """Send a ping, or kill the fork server if too many are unanswered; it is then replaced."""
        if not self._alive or self._process.hangs:
            return
        if self._unanswered >= (_MAX_UNANSWERED_PREPARING if self._preparing else _MAX_UNANSWERED):
            self._process.hangs = True
            self._service.log.error(
                "fork_server_hangs",
                seconds=self._unanswered * _PING_INTERVAL,
                connections=len(self._connections),
            )
            self._process.kill()  # `_on_death` follows
            return
        self._unanswered += 1
        self._process.ping()

    def _unwatch(self) -> None:
        self._service.lifecycle.forget(self._process.control.fileno())
        self._service.lifecycle.forget(self._process.pidfd)

    def _reserve(self) -> int:
        if self._free_numbers:
            return self._free_numbers.pop()
        self._number_count += 1
        return self._number_count - 1

    # -- messages ------------------------------------------------------------------------------

    def _terminate(self, number: int) -> None:
        lifecycle = self._service.lifecycle
        stop_signal = DRAIN_SIGNAL if lifecycle.retiring else signal.SIGTERM
        # A connection that only makes room for others has unlimited time for what it is owed.
        self._reports.drain_timeout = 0.0 if lifecycle.running else lifecycle.drain_timeout
        with suppress(OSError):  # the fork server has died, and the child with it
            self._process.send(Kind.SIGNAL, number, stop_signal)

    def _receive(self) -> None:
        """Handle all messages that have arrived from the fork server."""
        for message in self._process.messages():
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
