"""What a child needs to serve its one client, all of it made before the fork."""

import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from echoserver.conversation.connection import Connection
from echoserver.conversation.failures import describe_without_message, tls_failed
from echoserver.drivers.blocking import BlockedThread
from echoserver.forkserver.reports import Failure, Reports
from echoserver.handlers import Handler
from echoserver.lifecycle.state import State

# What is rehearsed.
ECHO: dict[str, Any] = {
    "module": "echoserver.handlers.echo",
    "file": "",
    "class": "EchoHandler",
    "options": {},
    "tls": None,
}

# Of the rehearsal: more than it takes Python to adapt code that runs, and code that loops.
_CONVERSATIONS = _MESSAGES = 20


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


class PreparedConversation:
    """All that a child needs for its connection, but for the client's socket.

    It is made before the fork, which copies it: what a child need not make, it need not touch
    pages for. A client's socket takes the place of the one that it was made with (dup2(2)).
    """

    def __init__(self, host: "ChildHost") -> None:
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
            connection.outcome or "",
            self._host.failures,
        )


class ChildHost:
    """What a connection needs of its service, where it is the only one."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.make_handler = config.make_handler
        self.secure = config.secure
        self.lifecycle = State(config.drain_timeout)
        self.failures: list[Failure] = []

    def report_failure(self, event: str, error: BaseException) -> None:
        """Keep it for the server, which has a log."""
        self.failures.append((event, describe_without_message(self.make_handler, error)))

    def report_tls_failure(self, _connection: Connection, reason: str) -> None:
        """Keep the reason for the server, which has a log."""
        self.failures.append(tls_failed(reason))

    def refuse(self, connection: Connection, error: BaseException) -> None:
        """Nothing is started here for a connection but the child that is running already."""
        self.report_failure("client_refused", error)
        self.release(connection)

    def release(self, connection: Connection) -> None:
        """Leave it to the end of the process; slot and totals are the server's."""


def rehearse(settings: Settings, reports: Reports) -> None:
    """Do here, a few times, what children are going to do.

    Code that has run is adapted to what it met (PEP 659). A child would do that again, in
    copies of its own of the pages that hold the code.
    """
    host = ChildHost(settings)
    for _ in range(_CONVERSATIONS):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            for _ in range(_MESSAGES):
                theirs.send(b"one, two")
            theirs.shutdown(socket.SHUT_WR)
            conversation = PreparedConversation(host)
            conversation.take(ours.detach())
            conversation.hold(reports, reports.spare)
            conversation.close()
    reports.take(reports.spare)
