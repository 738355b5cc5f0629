"""What every connection of a server shares: its limit, its totals, its drain."""

import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from echoserver.config import Config
from echoserver.connection import Connection, HandlerTypeError
from echoserver.handlers import Handler
from echoserver.lifecycle import Lifecycle
from echoserver.log import Log

_TICK = 0.1  # seconds between two attempts to cut
_AFTERMATH = 1.0  # seconds in which connections that were cut may report what they had done


@dataclass(slots=True)
class Totals:
    """What a server did, from its first client to its last; the ``stopped`` line."""

    connections: int = 0
    """Clients that got a slot."""
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_discarded: int = 0
    """Input that came after our FIN, read and thrown away."""
    resets: int = 0
    """Connections that the peer (or the network) broke."""
    idle_timeouts: int = 0
    write_timeouts: int = 0
    handler_errors: int = 0
    refused: int = 0
    """Clients for which no thread or process could be started."""
    rejected: int = 0
    """Clients turned away at the limit (``--overload reject``)."""
    unserved: int = 0
    """Clients that the kernel had queued when the drain began, and that no slot was free for."""
    accept_errors: int = 0
    cut: int = 0
    """Connections that were still owed output when the drain's time was over."""


_COUNTED_OUTCOMES = {
    "reset": "resets",
    "idle_timeout": "idle_timeouts",
    "write_timeout": "write_timeouts",
    "handler_error": "handler_errors",
    "refused": "refused",
    "cut": "cut",
}


class Service:
    """Hands out slots, keeps the totals, and ends every connection when the server drains."""

    def __init__(
        self,
        config: Config,
        handler_class: type[Handler],
        lifecycle: Lifecycle,
        log: Log,
        limit: int,
    ) -> None:
        self.config = config
        self.handler_class = handler_class
        self.lifecycle = lifecycle
        self.log = log
        self.limit = limit
        """Connections open at a time."""
        self.totals = Totals()
        self.wake_on_release = False
        """Set by whoever waits for a slot."""
        self._open: set[Connection] = set()
        # Guards the set and the totals, and keeps a thread alive while it is being woken:
        # pthread_kill of one that has ended is undefined.
        self._lock = threading.Lock()

    # -- slots ---------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Every slot is taken."""
        return len(self._open) >= self.limit

    def admit(self, sock: socket.socket, peer: Any) -> Connection:
        """Give a client that was accepted its slot."""
        connection = Connection(sock, peer, self)
        with self._lock:
            self._open.add(connection)
            self.totals.connections += 1
        if self.log.debugging:
            self.log.debug("connection_opened", peer=_address(peer))
        return connection

    def release(self, connection: Connection) -> None:
        """Take a connection's slot back, close its socket, and count what it did."""
        totals = self.totals
        with self._lock:
            connection.sock.close()
            totals.bytes_in += connection.bytes_in
            totals.bytes_out += connection.bytes_out
            totals.bytes_discarded += connection.bytes_discarded
            if counter := _COUNTED_OUTCOMES.get(connection.outcome):
                setattr(totals, counter, getattr(totals, counter) + 1)
            # Last: `drain` looks without the lock, and takes an empty set for complete totals.
            self._open.discard(connection)
        if self.log.debugging:
            self.log.debug(
                "connection_closed",
                peer=_address(connection.peer),
                outcome=connection.outcome,
                bytes_in=connection.bytes_in,
                bytes_out=connection.bytes_out,
            )
        if self.wake_on_release:
            self.lifecycle.wake()

    # -- the end -------------------------------------------------------------------------------

    def drain(self) -> None:
        """End every connection once it has what it is owed; return when all have ended.

        A backend calls this when its accept loop is over. Connections that still have output
        undelivered at the deadline are cut and counted.
        """
        lifecycle = self.lifecycle
        self.wake_on_release = True
        self.log.info("draining", signal=lifecycle.signal_name, connections=len(self._open))
        lifecycle.run_hooks()
        self._tell_all(Connection.wake)
        while self._open and not lifecycle.killed and not lifecycle.overdue:
            left = lifecycle.deadline - time.monotonic()
            lifecycle.wait(None if left == inf else max(0.0, left))
        if not self._open:
            return
        if not lifecycle.killed:
            self.log.error(
                "drain_timeout",
                connections=len(self._open),
                advice="they did not read what they were owed; --drain-timeout gives them longer",
            )
        give_up = time.monotonic() + (0.0 if lifecycle.killed else _AFTERMATH)
        while self._open:
            self._tell_all(Connection.cut)
            if time.monotonic() >= give_up:
                break
            lifecycle.wait(_TICK)
        with self._lock:
            self.totals.cut += len(self._open)
            for connection in self._open:
                connection.outcome = "abandoned"  # counted, should it still be released

    def _tell_all(self, what: Callable[[Connection], None]) -> None:
        with self._lock:
            for connection in self._open:
                what(connection)

    # -- what connections report ---------------------------------------------------------------

    def report_failure(self, event: str, error: BaseException) -> None:
        """Log what failed and where; never the error's words, which may quote what a peer sent."""
        about = {"handler": self.handler_class.__qualname__, "error": type(error).__name__}
        if isinstance(error, HandlerTypeError):
            about["reason"] = str(error)  # the core's own words
        elif frames := traceback.extract_tb(error.__traceback__)[-1:]:
            about["where"] = f"{frames[0].filename}:{frames[0].lineno} in {frames[0].name}"
        self.log.error(event, **about)


def _address(peer: Any) -> str:
    return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
