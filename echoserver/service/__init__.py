"""What all connections of a server share: its limit, its totals, its drain."""

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
    describe_tls_failure,
    describe_without_message,
)
from echoserver.flow import Flow
from echoserver.handlers import Handler
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.counters import Totals, Vitals, count_end
from echoserver.monitoring.log import Log
from echoserver.service.resources import Resources

if TYPE_CHECKING:
    from echoserver.conversation.tls import TlsServer

_SWEEPS_PER_TIMEOUT = 8  # of the idle timeout

_MIN_SWEEP_INTERVAL = 0.01  # seconds

_ABORT_INTERVAL = 0.1  # seconds between two attempts to cut connections

_ABORT_GRACE = 1.0  # seconds in which connections that were cut may still report their bytes


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
        """The function that makes the handler of one connection."""
        self.secure = secure
        """What puts TLS over an accepted socket; None: the server does not use TLS."""
        self.lifecycle = lifecycle
        self.log = log
        self.slots = resources.slots
        self.quota = resources.quota
        self._access_log = resources.access_log
        self._publish, self._promptly = resources.publish, resources.promptly
        self.totals = Totals()
        self.vitals = Vitals()
        self.wake_on_release = False
        """Whether to wake the main flow when a slot comes free."""
        self._next_sweep = 0.0
        self._open: set[Connection] = set()
        self._pending_records = 0  # ended connections that the logs do not have yet
        # Guards the set and the totals, and keeps a thread alive while it is being woken:
        # pthread_kill of one that has ended is undefined.
        self._lock = threading.Lock()

    def reconfigure(
        self, config: Config, make_handler: Callable[[], Handler], secure: "TlsServer | None"
    ) -> None:
        """Use other settings for new connections; open connections keep their handler."""
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

    def admit(self, sock: socket.socket, peer: Any, *, uses_quota: bool) -> Connection:
        """Give a client that was accepted the slot that was taken for it.

        Args:
            sock: The client's socket.
            peer: The client's address.
            uses_quota: Whether it was counted in the quota of that address.
        """
        connection = Connection(sock, peer, self)
        connection.uses_quota = uses_quota
        with self._lock:
            self._open.add(connection)
            self.totals.connections += 1
            if self._promptly:
                self.publish()
        if self.log.debugging:
            self.log.debug("connection_opened", peer=format_address(*peer[:2]))
        return connection

    def refuse(self, connection: Connection, error: BaseException) -> None:
        """Log that nothing could be started to serve a connection, and release it."""
        self.log.warning_each_second(
            "client_refused", reason="cannot start a thread or process for it", error=str(error)
        )
        self.release(connection)

    def release(self, connection: Connection) -> None:
        """Free a connection's slot, close its socket, and count its bytes and its outcome."""
        with self._lock:
            # The slot first, so that a client that sees our FIN and reconnects at once gets one.
            self.slots.give()
            if connection.uses_quota:
                self.quota.give(connection.peer[0])
            connection.close()
            self.totals.add_bytes(*connection.new_byte_counts())
            outcome = connection.outcome or ""
            count_end(outcome, self.totals, self.vitals)
            # In this order, because `drain` checks both without the lock.
            self._pending_records += 1
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
            self._pending_records -= 1
        if self.wake_on_release:
            self.lifecycle.wake()

    def sample(self) -> None:
        """Add to the totals what open connections have done so far, and publish them."""
        with self._lock:
            for connection in self._open:
                self.totals.add_bytes(*connection.new_byte_counts())
            self.publish()

    def publish(self) -> None:
        """Publish the vitals and totals of this process."""
        if self._publish is not None:
            vitals = self.vitals
            vitals.open = self.open
            vitals.log_lines_dropped = self.log.dropped
            if self._access_log is not None:
                vitals.access_lines_dropped = self._access_log.dropped
            self._publish(vitals, self.totals)

    # -- idle timeout --------------------------------------------------------------------------

    def sweep(self) -> float | None:
        """Wake connections that were silent for the idle timeout, to within an eighth of it.

        One timer for all instead of one per wait: a message costs no timer at all. (Where a
        thread blocks, the kernel keeps the time.)

        Returns:
            Seconds until the next sweep is due; None: never.
        """
        if not self.config.idle_timeout:
            return None
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + max(
                self.config.idle_timeout / _SWEEPS_PER_TIMEOUT, _MIN_SWEEP_INTERVAL
            )
            timeout = self.config.idle_timeout
            self._for_each(lambda connection: connection.sweep(now, timeout))
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
        """Return what `drain` does as a flow."""
        lifecycle = self.lifecycle
        self.wake_on_release = True
        self.log.flush_repeats()
        self.log.info("draining", signal=lifecycle.signal_name, connections=self.open)
        lifecycle.run_hooks()
        self.notify_of_drain()
        while self._has_unfinished and not lifecycle.killed and not lifecycle.overdue:
            remaining_time = lifecycle.deadline - time.monotonic()
            yield lifecycle.next_wait(None if remaining_time == inf else max(0.0, remaining_time))
            lifecycle.dispatch_ready()
        if not self._open:
            return
        if not lifecycle.killed:
            self.log.error(
                "drain_timeout",
                connections=len(self._open),
                advice="they did not read what they were owed; --drain-timeout gives them longer",
            )
        abort_deadline = time.monotonic() + (0.0 if lifecycle.killed else _ABORT_GRACE)
        while self._has_unfinished:
            self._for_each(Connection.abort)
            if time.monotonic() >= abort_deadline:
                break
            yield lifecycle.next_wait(_ABORT_INTERVAL)
            lifecycle.dispatch_ready()
        with self._lock:
            remaining = list(self._open)
            self.totals.cut += len(remaining)
        for connection in remaining:
            connection.abandon()

    def open_connections(self) -> list[Connection]:
        """Return the connections that are open in this process."""
        with self._lock:
            return list(self._open)

    def is_open(self, connection: Connection) -> bool:
        """Tell whether a connection is open in this process."""
        return connection in self._open

    @property
    def _has_unfinished(self) -> bool:
        """Whether there are connections that are open, or not in the logs yet."""
        return bool(self._open or self._pending_records)

    def ask_to_leave(self, connection: Connection) -> bool:
        """Ask a connection to end, to make room; False if it has ended, or is owed something."""
        with self._lock:
            if connection not in self._open or connection.owed:
                return False
            connection.ask_to_leave()
            return True

    def notify_of_drain(self) -> None:
        """Wake every connection that has not noticed the drain yet."""
        self._for_each(Connection.notify_of_drain)

    def _for_each(self, action: Callable[[Connection], None]) -> None:
        with self._lock:
            for connection in self._open:
                action(connection)

    # -- what connections report ---------------------------------------------------------------

    def report_failure(self, event: str, error: BaseException) -> None:
        """Log the type and place of an error, not its message, which may quote a peer's data."""
        self.log.error_each_second(event, **describe_without_message(self.make_handler, error))

    def report_tls_failure(self, connection: Connection, reason: str) -> None:
        """Log why a peer was not served over TLS."""
        self.report(connection, *describe_tls_failure(reason))

    def report(self, connection: Connection, event: str, fields: dict[str, str]) -> None:
        """Log what a connection, here or in another process, has to report.

        Lines are limited to one a second, because peers can cause any number of these events.
        """
        if event in PEER_CAUSED_EVENTS:
            self.log.warning_each_second(event, client=connection.peer[0], **fields)
        else:
            self.log.error_each_second(event, **fields)
