"""What every connection of a server shares: its limit, its totals, its drain."""

import socket
import threading
import time
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

from echoserver.addresses import format_address
from echoserver.config import Config
from echoserver.conversation.connection import Connection
from echoserver.conversation.failures import (
    PEER_CAUSED_EVENTS,
    describe_without_message,
    tls_failed,
)
from echoserver.flow import Flow
from echoserver.handlers import Handler
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.counters import Totals, Vitals, count_end
from echoserver.monitoring.log import Log
from echoserver.service.resources import Resources

if TYPE_CHECKING:
    from echoserver.conversation.tls import TlsServer

_SWEEPS = 8  # an idle timeout

_SHORTEST_SWEEP = 0.01  # seconds from one to the next

_TICK = 0.1  # seconds between two attempts to cut

_ABORT_GRACE = 1.0  # seconds in which connections that were cut may report what they had done


class Service:
    """Hands out slots, keeps the totals, and ends every connection when the server drains."""

    def __init__(
        self,
        config: Config,
        make_handler: Callable[[], Handler],
        lifecycle: Lifecycle,
        log: Log,
        resources: Resources,
        secure: "TlsServer | None" = None,
    ) -> None:
        self.config = config
        self.make_handler = make_handler
        """Makes the handler of one connection."""
        self.secure = secure
        """Puts TLS over an accepted socket; None: nobody speaks TLS."""
        self.lifecycle = lifecycle
        self.log = log
        self.slots = resources.slots
        self.quota = resources.quota
        self._access_log = resources.access_log
        self._publish, self._promptly = resources.publish, resources.promptly
        self.totals = Totals()
        self.vitals = Vitals()
        self.wake_on_release = False
        """Set while something waits for a slot."""
        self._next_sweep = 0.0
        self._open: set[Connection] = set()
        self._unwritten = 0  # connections that have ended, and are still to be written down
        # Guards the set and the totals, and keeps a thread alive while it is being woken:
        # pthread_kill of one that has ended is undefined.
        self._lock = threading.Lock()

    def reconfigure(
        self, config: Config, make_handler: Callable[[], Handler], secure: "TlsServer | None"
    ) -> None:
        """Serve by other settings from now on; connections that are open keep their handler."""
        self.config = config
        self.make_handler = make_handler
        self.secure = secure
        self._next_sweep = 0.0

    # -- slots ---------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Connections that this process may have open at a time."""
        return self.slots.limit

    @property
    def open(self) -> int:
        """Connections that are open in this process."""
        return len(self._open)

    def admit(self, sock: socket.socket, peer: Any, *, counted: bool) -> Connection:
        """Give a client that was accepted the slot that was taken for it.

        Args:
            sock: Its socket.
            peer: Its address.
            counted: It was counted for that address.
        """
        connection = Connection(sock, peer, self)
        connection.counted = counted
        with self._lock:
            self._open.add(connection)
            self.totals.connections += 1
            if self._promptly:
                self.publish()
        if self.log.debugging:
            self.log.debug("connection_opened", peer=format_address(*peer[:2]))
        return connection

    def refuse(self, connection: Connection, error: BaseException) -> None:
        """Nothing could be started to serve a connection: say so, and release it."""
        self.log.warning_each_second(
            "client_refused", reason="cannot start a thread or process for it", error=str(error)
        )
        self.release(connection)

    def release(self, connection: Connection) -> None:
        """Take a connection's slot back, close its socket, and count what it did."""
        with self._lock:
            # First: who sees our FIN and comes back at once finds a slot.
            self.slots.give()
            if connection.counted:
                self.quota.give(connection.peer[0])
            connection.close()
            self._account_for(connection)
            outcome = connection.outcome or ""
            count_end(outcome, self.totals, self.vitals)
            # In this order: `drain` looks without the lock, and waits for both.
            self._unwritten += 1
            self._open.discard(connection)
            if self._promptly:
                self.publish()
        if self.log.debugging:
            self.log.debug(
                "connection_closed",
                peer=format_address(*connection.peer[:2]),
                outcome=outcome,
                bytes_in=connection.bytes_in,
                bytes_out=connection.bytes_out,
            )
        if self._access_log is not None:
            self._access_log.write(
                format_address(*connection.peer[:2]),
                outcome,
                (connection.bytes_in, connection.bytes_out, connection.bytes_discarded),
                time.monotonic() - connection.since,
            )
        with self._lock:
            self._unwritten -= 1
        if self.wake_on_release:
            self.lifecycle.wake()

    def sample(self) -> None:
        """Take into the totals what connections have done so far that are still open."""
        with self._lock:
            for connection in self._open:
                self._account_for(connection)
            self.publish()

    def _account_for(self, connection: Connection) -> None:
        came, went, late = connection.unaccounted()
        self.totals.bytes_in += came
        self.totals.bytes_out += went
        self.totals.bytes_discarded += late

    def publish(self) -> None:
        """Publish how things are."""
        if self._publish is not None:
            vitals = self.vitals
            vitals.open = self.open
            vitals.log_lines_dropped = self.log.dropped
            if self._access_log is not None:
                vitals.access_lines_dropped = self._access_log.dropped
            self._publish(vitals, self.totals)

    # -- silence -------------------------------------------------------------------------------

    def sweep(self) -> float | None:
        """Wake connections that were silent for the idle timeout; to within an eighth of it.

        One timer for all instead of one per wait: a message costs no timer at all. (Where a
        thread blocks, the kernel keeps the time.)

        Returns:
            Seconds until the next sweep is due; None: never.
        """
        if not self.config.idle_timeout:
            return None
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + max(self.config.idle_timeout / _SWEEPS, _SHORTEST_SWEEP)
            patience = self.config.idle_timeout
            self._each(lambda connection: connection.sweep(now, patience))
        return self._next_sweep - now

    # -- the end -------------------------------------------------------------------------------

    def drain(self) -> None:
        """End every connection once it has what it is owed; return when all have ended.

        A backend whose main flow blocks calls this when its accept loop is over. Connections
        that still have output undelivered at the deadline are cut and counted.
        """
        for wait in self.draining():
            self.lifecycle.block(wait)

    def draining(self) -> Flow:
        """Do as `drain`, as a flow."""
        lifecycle = self.lifecycle
        self.wake_on_release = True
        self.log.say_rest()
        self.log.info("draining", signal=lifecycle.signal_name, connections=self.open)
        lifecycle.run_hooks()
        self.tell_to_end()
        while self._unfinished and not lifecycle.killed and not lifecycle.overdue:
            left = lifecycle.deadline - time.monotonic()
            yield lifecycle.next_wait(None if left == inf else max(0.0, left))
            lifecycle.dispatch_ready()
        if not self._open:
            return
        if not lifecycle.killed:
            self.log.error(
                "drain_timeout",
                connections=len(self._open),
                advice="they did not read what they were owed; --drain-timeout gives them longer",
            )
        give_up = time.monotonic() + (0.0 if lifecycle.killed else _ABORT_GRACE)
        while self._unfinished:
            self._each(Connection.abort)
            if time.monotonic() >= give_up:
                break
            yield lifecycle.next_wait(_TICK)
            lifecycle.dispatch_ready()
        with self._lock:
            left_over = list(self._open)
            self.totals.cut += len(left_over)
        for connection in left_over:
            connection.abandon()

    def open_connections(self) -> list[Connection]:
        """Return the connections that are open in this process."""
        with self._lock:
            return list(self._open)

    def is_open(self, connection: Connection) -> bool:
        """Tell whether a connection is open in this process."""
        return connection in self._open

    @property
    def _unfinished(self) -> bool:
        """There are connections that are open, or not written down yet."""
        return bool(self._open or self._unwritten)

    def ask_to_leave(self, connection: Connection) -> bool:
        """End a connection to make room; False where it has ended, or is owed something now."""
        with self._lock:
            if connection not in self._open or connection.owed:
                return False
            connection.ask_to_leave()
            return True

    def tell_to_end(self) -> None:
        """Let every connection notice the drain that has not been told yet."""
        self._each(Connection.tell_to_end)

    def _each(self, what: Callable[[Connection], None]) -> None:
        with self._lock:
            for connection in self._open:
                what(connection)

    # -- what connections report ---------------------------------------------------------------

    def report_failure(self, event: str, error: BaseException) -> None:
        """Log what failed and where; never the error's words, which may quote what a peer sent."""
        self.log.error_each_second(event, **describe_without_message(self.make_handler, error))

    def report_tls_failure(self, connection: Connection, reason: str) -> None:
        """Log why a peer, with which TLS was to be spoken, was not served."""
        self.report(connection, *tls_failed(reason))

    def report(self, connection: Connection, event: str, about: dict[str, str]) -> None:
        """Log what a connection, here or in another process, has to report.

        Anybody may cause as many of them as they like.
        """
        if event in PEER_CAUSED_EVENTS:
            self.log.warning_each_second(event, client=connection.peer[0], **about)
        else:
            self.log.error_each_second(event, **about)
