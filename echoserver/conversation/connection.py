"""One client's connection: the conversation every model drives, and a close that loses nothing.

The byte contract: every byte read is answered, in order, before our FIN. What a client gets back
is always an exact prefix of what it is owed, then the end of the stream.
"""

import socket
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Protocol

from echoserver.conversation.closing import close_stream
from echoserver.conversation.endings import (
    ConnectionLost,
    ConversationEnded,
    HandlerFailed,
    call_handler,
)
from echoserver.conversation.exchange import Exchange
from echoserver.conversation.interfaces import Terms, Tls
from echoserver.drivers import blocking
from echoserver.errors import TlsError
from echoserver.flow import Driver, Flow, Wait, WaitResult
from echoserver.handlers import Handler
from echoserver.outcome import Outcome

# Outcomes that every connection uses. Python code (as of 3.11) looks up a member of an enumeration,
# which would touch, and so copy, pages of a forked child.
_EOF, _RESET = Outcome.EOF, Outcome.RESET


class Host(Terms, Protocol):
    """What a connection needs of the process that serves it: a `Service`, or a forked child."""

    @property
    def make_handler(self) -> Callable[[], Handler]:
        """The function that makes the handler of one connection."""

    @property
    def secure(self) -> Callable[[socket.socket], Tls] | None:
        """The function that puts TLS over an accepted socket; None: the server does not use TLS."""

    def report_failure(self, event: str, error: BaseException) -> None:
        """Report a failure in a connection."""

    def report_tls_failure(self, connection: "Connection", reason: str) -> None:
        """Report why a peer was not served over TLS."""

    def refuse(self, connection: "Connection", error: BaseException) -> None:
        """Report that nothing could be started to serve a connection, and release it."""

    def release(self, connection: "Connection") -> None:
        """Close a connection that is over, count its bytes and its outcome, and free its slot."""


class Connection(Exchange):
    """A client that was accepted, and holds one of the server's slots until it has ended."""

    __slots__ = (
        "_driver",
        "_flow",
        "_has_drain_notice",
        "_host",
        "_is_swept",
        "_last_byte_count",
        "_quiet_since",
        "_remote",
        "_reported_byte_counts",
        "_terminate",
        "outcome",
        "peer",
        "since",
        "uses_quota",
    )

    def __init__(self, sock: socket.socket, peer: Any, host: Host) -> None:
        super().__init__(sock, host)
        self.peer = peer
        """The client's address, as ``accept`` gave it: host and port first. See `addresses`."""
        self.since = time.monotonic()
        """When the client was accepted (``monotonic``)."""
        self.uses_quota = False
        """Whether the connection counts against the quota of the client's address."""
        self.outcome: Outcome | None = None
        """Why the connection has ended; None: it has not."""
        self._host = host
        self._driver: Driver | None = None
        self._flow: Flow | None = None
        self._terminate: Callable[[], None] | None = None
        self._remote: tuple[str, int] | None = None
        self._has_drain_notice = False
        self._reported_byte_counts = (0, 0, 0)
        self._is_swept = False
        self._quiet_since = 0.0
        self._last_byte_count = 0

    # -- what a backend calls ------------------------------------------------------------------

    def serve(self) -> None:
        """Serve this connection to its end in the calling thread, which blocks."""
        blocking.BlockingDriver(self, self._host.lifecycle).run()

    def driven_by(self, driver: Driver, *, blocking: bool = False, swept: bool = True) -> Flow:
        """Return the flow that serves this connection to its end, for `driver` to run.

        No failure leaves the flow: the connection is closed and counted, and its slot freed.

        Args:
            driver: What runs the flow.
            blocking: Leave the socket in blocking mode: the system calls themselves wait, and the
                kernel keeps the timeouts.
            swept: Let the main flow check whether the connection is idle.
        """
        self._driver = driver
        self._is_swept = swept
        # Override what the program may have set with socket.setdefaulttimeout.
        self.sock.setblocking(blocking)
        self.stream = self.sock
        if self._host.secure is not None:
            self.stream = self.tls = self._host.secure(self.sock)
            self.tls.raise_on_no_data = True
        self._flow = self._live(blocking=blocking)
        return self._flow

    def delegate(self, terminate: Callable[[], None]) -> None:
        """Leave the connection to another process, and close our copy of its socket.

        Args:
            terminate: Tells that process to drain, and again when the drain's time is over.
        """
        self._remote = self.remote
        self.sock.close()
        self._terminate = terminate

    def release(self) -> None:
        """Count the connection's bytes and outcome, and free its slot, after its end."""
        self._host.release(self)

    def refuse(self, error: BaseException) -> None:
        """Close the connection because nothing could be started to serve it; log that."""
        self.outcome = Outcome.REFUSED
        self._host.refuse(self, error)

    # -- what the service calls ----------------------------------------------------------------

    def notify_of_drain(self) -> None:
        """Wake the connection for the drain, but only once: a second wake-up would cut it short."""
        if not self._has_drain_notice:
            self._has_drain_notice = True
            self.wake()

    def wake(self) -> None:
        """End the connection's wait for input."""
        if self._terminate is not None:
            self._terminate()
        elif self._driver is not None:
            self._driver.wake()

    @property
    def remote(self) -> tuple[str, int]:
        """Address and port of the socket's other end: the client's, or those of a balancer."""
        if self._remote is not None:
            return self._remote
        try:
            name = self.sock.getpeername()
        except OSError:
            return "0.0.0.0", 0
        return name[:2] if isinstance(name, tuple) else ("unix:", 0)

    def new_byte_counts(self) -> tuple[int, int, int]:
        """Return the bytes in, out and discarded since the last call of this method."""
        before = self._reported_byte_counts
        now = self.bytes_in, self.bytes_out, self.bytes_discarded
        self._reported_byte_counts = now
        return now[0] - before[0], now[1] - before[1], now[2] - before[2]

    def ask_to_leave(self) -> None:
        """End the connection as soon as its client is owed nothing, to make room."""
        self.should_leave = True
        self.wake()

    def record_outcome(self, outcome: Outcome) -> None:
        """Record why the connection has ended, as the process that served it reports."""
        if self.should_leave and outcome in {Outcome.DRAINED, Outcome.TLS_TIMEOUT}:
            outcome = Outcome.SHED
        self.outcome = self.outcome or outcome

    def abort(self) -> None:
        """End the connection, because the drain's time is over."""
        self.outcome = Outcome.CUT
        if self._terminate is not None:
            self._terminate()
        else:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Release the connection in whatever state it is, because cutting it did not end it."""
        self.outcome = Outcome.ABANDONED
        if self._flow is not None:
            with suppress(ValueError):  # a thread is running the flow, and does not return
                self._flow.close()

    def sweep(self, now: float, timeout: float) -> None:
        """Wake the connection if no call has seen bytes move for `timeout` seconds."""
        byte_count = self.bytes_in + self.bytes_out
        if byte_count != self._last_byte_count or not self._quiet_since:
            self._last_byte_count, self._quiet_since = byte_count, now
        elif self._is_swept and now - self._quiet_since >= timeout and self._driver is not None:
            self._driver.wake()

    def pulse(self) -> None:
        """Do what `sweep` does, for a main flow that cannot, as it blocks in this connection."""
        if self._host.config.idle_timeout:
            self.sweep(time.monotonic(), self._host.config.idle_timeout)

    def close(self) -> None:
        """Close the socket, after its driver has released it."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        self.sock.close()

    # -- the conversation ----------------------------------------------------------------------

    def _live(self, *, blocking: bool) -> Flow:
        """Answer until there is a reason to stop; then close the stream, losing nothing."""
        host = self._host
        ending = _RESET
        try:
            ending = yield from self._converse(blocking=blocking)
            peer_has_ended = ending is _EOF
            if peer_has_ended and self.tls is not None and self.tls.truncated:
                ending = Outcome.TRUNCATED
            yield from close_stream(self, peer_has_ended=peer_has_ended)
        except ConnectionLost as loss:
            ending = loss.outcome
            if loss.reason:
                host.report_tls_failure(self, loss.reason)
        except OSError:
            pass  # a reset, if in the conversation; afterwards, the peer is owed nothing
        except Exception as error:  # noqa: BLE001 - one connection's failure must not end others
            host.report_failure("connection_failed", error)
            ending = _RESET
        finally:
            self.outcome = self.outcome or ending  # a cut looks like a reset here
            host.release(self)

    def _converse(self, *, blocking: bool) -> Generator[Wait, WaitResult, Outcome]:
        """Do the TLS handshake, and answer; return why the conversation is over."""
        host = self._host
        try:
            if self.tls is not None:
                yield from self.shake_hands(self.tls)
            new = not host.lifecycle.running
            handler = call_handler(host.make_handler)
            ending = yield from self.answer(handler, blocking=blocking, new=new)
            if last_answer := call_handler(handler.finish):
                yield from self.carry_out(last_answer)
        except ConversationEnded as end:
            return end.outcome
        except TlsError as error:
            host.report_tls_failure(self, error.strerror or "")
            self.stream = self.sock  # whatever may still come is meaningless
            return Outcome.TLS_FAILED
        except HandlerFailed as failure:
            host.report_failure("handler_failed", failure.error)
            return Outcome.HANDLER_ERROR
        return ending
