"""The objects with which a child serves its one client, all of them made before the fork."""

import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from echoserver.conversation.connection import Connection
from echoserver.conversation.failures import describe_tls_failure, describe_without_message
from echoserver.drivers.blocking import BlockingDriver
from echoserver.forkserver.reports import Failure, Reports
from echoserver.handlers import Handler
from echoserver.lifecycle.state import State

# The settings that differ in a rehearsal, which serves the echo handler without TLS.
ECHO: dict[str, Any] = {
    "module": "echoserver.handlers.echo",
    "file": "",
    "class": "EchoHandler",
    "options": {},
    "tls": None,
}

# In the rehearsal: more than Python needs before it adapts functions and loops.
_CONVERSATIONS = _MESSAGES = 20


class Settings:
    """The settings that `Connection` reads, and all else that a child needs to know.

    Args:
        request: The content of a PREPARE message.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.idle_timeout: float = request["idle_timeout"]
        self.write_timeout: float = request["write_timeout"]
        self.handshake_timeout: float = request["handshake_timeout"]
        self.drain_timeout: float = request["drain_timeout"]
        self.secure = _secure(request["tls"]) if request["tls"] else None
        sys.path[:] = request["path"]
        factory: Any = _module(request["module"], request["file"])
        for attribute in request["class"].split("."):
            factory = getattr(factory, attribute)
        options = request["options"]
        self.make_handler: Callable[[], Handler] = (
            partial(factory, **options) if options else factory
        )


def _secure(credentials: tuple[bytes, bytes, bytes | None]) -> Callable[[socket.socket], Any]:
    from echoserver.conversation.credentials import Credentials  # large, and rarely needed
    from echoserver.conversation.tls import TlsServer

    return TlsServer(Credentials(*credentials))


def _module(name: str, file: str) -> Any:
    try:
        return _import(name, file)
    except ModuleNotFoundError:
        import site  # its hooks find packages in editable installations

        site.main()
        return _import(name, file)


def _import(name: str, file: str) -> Any:
    if not file:
        return import_module(name)
    from echoserver.plugins import import_file

    return import_file(name, file)


class PreparedConversation:
    """All that a child needs for its connection, except for the client's socket.

    It is made before the fork, which copies it, so that the child writes to fewer pages. The
    client's socket takes over the descriptor of a placeholder (dup2(2)).
    """

    def __init__(self, host: "ChildHost") -> None:
        self._host = host
        self._placeholder = socket.socket()
        self._sock = self._placeholder.dup()
        self._connection = Connection(self._sock, None, host)
        self._thread = BlockingDriver(self._connection, host.lifecycle)

    def attach(self, fd: int) -> None:
        """Connect the conversation to a client's socket, until `detach`."""
        os.dup2(fd, self._sock.fileno(), inheritable=False)
        os.close(fd)

    def detach(self) -> None:
        """Close this process's copy of the client's socket."""
        os.dup2(self._placeholder.fileno(), self._sock.fileno(), inheritable=False)

    def close(self) -> None:
        """Close the placeholder sockets of a conversation that is not needed any more."""
        self._sock.close()
        self._placeholder.close()

    def serve(self, reports: Reports, number: int) -> None:
        """Serve the connection to its end, and report the result as child `number`."""
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
    """A child's stand-in for the service, with what its only connection needs."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.make_handler = config.make_handler
        self.secure = config.secure
        self.lifecycle = State(config.drain_timeout)
        self.failures: list[Failure] = []

    def report_failure(self, event: str, error: BaseException) -> None:
        """Keep the failure for the server, which has a log."""
        self.failures.append((event, describe_without_message(self.make_handler, error)))

    def report_tls_failure(self, _connection: Connection, reason: str) -> None:
        """Keep the reason for the server, which has a log."""
        self.failures.append(describe_tls_failure(reason))

    def refuse(self, connection: Connection, error: BaseException) -> None:
        """Report that the connection could not be served, and release it."""
        self.report_failure("client_refused", error)
        self.release(connection)

    def release(self, connection: Connection) -> None:
        """Do nothing: the server keeps slots and totals, and this process is about to end."""


def rehearse(settings: Settings, reports: Reports) -> None:
    """Run a few conversations in the fork server, so that children run code that is warm.

    Python adapts code to the types that it meets as it runs (PEP 659). Without a rehearsal, every
    child would adapt it again, in its own copies of the pages that hold the code.
    """
    host = ChildHost(settings)
    for _ in range(_CONVERSATIONS):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            for _ in range(_MESSAGES):
                theirs.send(b"one, two")
            theirs.shutdown(socket.SHUT_WR)
            conversation = PreparedConversation(host)
            conversation.attach(ours.detach())
            conversation.serve(reports, reports.spare)
            conversation.close()
    reports.take(reports.spare)
