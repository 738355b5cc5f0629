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

# What every connection needs. A name of an enumeration is looked up by code in Python (3.11), which
# would touch, and so copy, pages of a forked child.
_EOF, _RESET = Outcome.EOF, Outcome.RESET


class Host(Terms, Protocol):
    """What a connection needs of the process that serves it."""

    @property
    def make_handler(self) -> Callable[[], Handler]:
        """Makes the handler of one connection."""

    @property
    def secure(self) -> Callable[[socket.socket], Tls] | None:
        """Puts TLS over an accepted socket; None: nobody speaks TLS."""

    def report_failure(self, event: str, error: BaseException) -> None:
        """Say what failed in it."""

    def report_tls_failure(self, connection: "Connection", reason: str) -> None:
        """Say why a peer, with which TLS was to be spoken, was not served."""

    def refuse(self, connection: "Connection", error: BaseException) -> None:
        """Nothing could be started to serve it: say so, and release it."""

    def release(self, connection: "Connection") -> None:
        """It is over: close it, count what it did, free its slot."""


class Connection(Exchange):
    """A client that was accepted, and holds one of the server's slots until it has ended."""

    __slots__ = (
        "_accounted",
        "_driver",
        "_flow",
        "_host",
        "_moved_before",
        "_quiet_since",
        "_remote",
        "_swept",
        "_terminate",
        "_told_to_end",
        "counted",
        "outcome",
        "peer",
        "since",
    )

    def __init__(self, sock: socket.socket, peer: Any, host: Host) -> None:
        super().__init__(sock, host)
        self.peer = peer
        """The client's address, as ``accept`` gave it: host and port first. See `addresses`."""
        self.since = time.monotonic()
        """When it was accepted (``monotonic``)."""
        self.counted = False
        """It counts against what its address may have."""
        self.outcome: Outcome | None = None
        """Why it ended; None: it has not."""
        self._host = host
        self._driver: Driver | None = None
        self._flow: Flow | None = None
        self._terminate: Callable[[], None] | None = None
        self._remote: tuple[str, int] | None = None
        self._told_to_end = False
        self._accounted = (0, 0, 0)
        self._swept = False
        self._quiet_since = 0.0
        self._moved_before = 0

    # -- what a backend calls ------------------------------------------------------------------

    def serve(self) -> None:
        """Serve this connection to its end in the calling thread, which blocks."""
        blocking.BlockedThread(self, self._host.lifecycle).run()

    def driven_by(self, driver: Driver, *, blocking: bool = False, swept: bool = True) -> Flow:
        """Return the flow that serves this connection to its end, for `driver` to run.

        Whatever happens in it stays in it: the connection is closed, counted, its slot freed.

        Args:
            driver: What runs it.
            blocking: Leave the socket in blocking mode: waiting is what the calls themselves do,
                and the kernel keeps the timeouts.
            swept: Let the main flow look whether it is idle.
        """
        self._driver = driver
        self._swept = swept
        # Whatever socket.setdefaulttimeout says in this program.
        self.sock.setblocking(blocking)
        self.stream = self.sock
        if self._host.secure is not None:
            self.stream = self.tls = self._host.secure(self.sock)
            self.tls.raise_on_no_data = True
        self._flow = self._live(blocking=blocking)
        return self._flow

    def handed_over(self, terminate: Callable[[], None]) -> None:
        """Another process serves it now: close our copy of its socket.

        Args:
            terminate: Tells that process to drain, and again when the drain's time is over.
        """
        self._remote = self.remote
        self.sock.close()
        self._terminate = terminate

    def release(self) -> None:
        """Nobody serves it any more: count what it did, and free its slot."""
        self._host.release(self)

    def refuse(self, error: BaseException) -> None:
        """Nothing could be started to serve it: close it, say so, free the slot."""
        self.outcome = Outcome.REFUSED
        self._host.refuse(self, error)

    # -- what the service calls ----------------------------------------------------------------

    def tell_to_end(self) -> None:
        """Let it notice the drain; only the first time, for a second one would cut it short."""
        if not self._told_to_end:
            self._told_to_end = True
            self.wake()

    def wake(self) -> None:
        """End its wait for input."""
        if self._terminate is not None:
            self._terminate()
        elif self._driver is not None:
            self._driver.wake()

    @property
    def remote(self) -> tuple[str, int]:
        """Address and port of the socket's other end, which is a balancer's where there is one."""
        if self._remote is not None:
            return self._remote
        try:
            name = self.sock.getpeername()
        except OSError:
            return "0.0.0.0", 0
        return name[:2] if isinstance(name, tuple) else ("unix:", 0)

    def unaccounted(self) -> tuple[int, int, int]:
        """Return the bytes in, out and discarded since the last call of this."""
        before, now = self._accounted, (self.bytes_in, self.bytes_out, self.bytes_discarded)
        self._accounted = now
        return now[0] - before[0], now[1] - before[1], now[2] - before[2]

    def ask_to_leave(self) -> None:
        """End it as soon as it is owed nothing, to make room."""
        self.asked_to_leave = True
        self.wake()

    def left(self, outcome: Outcome) -> None:
        """Another process has served it to its end, for which it gives this reason."""
        if self.asked_to_leave and outcome in {Outcome.DRAINED, Outcome.TLS_TIMEOUT}:
            outcome = Outcome.SHED
        self.outcome = self.outcome or outcome

    def abort(self) -> None:
        """End it: the drain's time is over."""
        self.outcome = Outcome.CUT
        if self._terminate is not None:
            self._terminate()
        else:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Release it, wherever it is: even being cut did not end it."""
        self.outcome = Outcome.ABANDONED
        if self._flow is not None:
            with suppress(ValueError):  # a thread is running it, and does not come back
                self._flow.close()

    def sweep(self, now: float, patience: float) -> None:
        """Wake it if nothing came or went for `patience` seconds, as far as calls of this saw."""
        moved = self.bytes_in + self.bytes_out
        if moved != self._moved_before or not self._quiet_since:
            self._moved_before, self._quiet_since = moved, now
        elif self._swept and now - self._quiet_since >= patience and self._driver is not None:
            self._driver.wake()

    def pulse(self) -> None:
        """Do as `sweep`, where no main flow can: it blocks in this very connection."""
        if self._host.config.idle_timeout:
            self.sweep(time.monotonic(), self._host.config.idle_timeout)

    def close(self) -> None:
        """Close the socket, after its driver has let go of it."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        self.sock.close()

    # -- the conversation ----------------------------------------------------------------------

    def _live(self, *, blocking: bool) -> Flow:
        """Answer until there is a reason to stop; then end, losing nothing."""
        host = self._host
        ending = _RESET
        try:
            ending = yield from self._converse(blocking=blocking)
            peer_has_ended = ending is _EOF
            if peer_has_ended and self.tls is not None and self.tls.truncated:
                ending = Outcome.TRUNCATED
            yield from close_stream(self, peer_has_ended=peer_has_ended)
        except ConnectionLost as lost:
            ending = lost.outcome
            if lost.reason:
                host.report_tls_failure(self, lost.reason)
        except OSError:
            pass  # in the conversation, that is the reset; afterwards, nobody is owed anything
        except Exception as error:  # noqa: BLE001 - one connection's failure is nobody else's
            host.report_failure("connection_failed", error)
            ending = _RESET
        finally:
            self.outcome = self.outcome or ending  # being cut shows as a reset, but is none
            host.release(self)

    def _converse(self, *, blocking: bool) -> Generator[Wait, WaitResult, Outcome]:
        """Greet and answer; return why it is over."""
        host = self._host
        try:
            if self.tls is not None:
                yield from self.greet(self.tls)
            new = not host.lifecycle.running
            handler = call_handler(host.make_handler)
            ending = yield from self.answer(handler, blocking=blocking, new=new)
            if last := call_handler(handler.finish):
                yield from self.carry_out(last)
        except ConversationEnded as ended:
            return ended.outcome
        except TlsError as error:
            host.report_tls_failure(self, error.strerror or "")
            self.stream = self.sock  # what may still come means nothing
            return Outcome.TLS_FAILED
        except HandlerFailed as failed:
            host.report_failure("handler_failed", failed.error)
            return Outcome.HANDLER_ERROR
        return ending
