"""One client's connection: the conversation every model drives, and a close that loses nothing.

The byte contract: every byte read is answered, in order, before our FIN. What a client gets back
is always an exact prefix of what it is owed, then the end of the stream.
"""

import fcntl
import math
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from signal import pthread_kill
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from echoserver.handlers import Answer, Handler, Sleep
from echoserver.lifecycle import NUDGE

if TYPE_CHECKING:
    from echoserver.service import Service

# One read, and so the most that a peer who does not read can make us hold for it. It is the
# high-water mark of every model: back-pressure begins where this much is unsent.
CHUNK = 64 * 1024

# Seconds that a connection which we end waits for the peer's end. Closing with unread input makes
# the kernel send RST, and that destroys output still on its way (RFC 1122, 4.2.2.13).
LINGER = 1.0

# A send gives up after this part of the write timeout, to look whether the peer reads at all.
WRITE_TIMEOUT_PARTS = 2

_GLANCE = 0.05  # seconds between two looks at what the kernel has still to deliver
_SOON = 0.001
_NO_LINGER = struct.pack("ii", 1, 0)
_TCP_CLOSE = 7  # tcp_states.h

# What a handler may return although it is told to return bytes: it means the same.
_BYTES = (bytes, bytearray, memoryview)

_T = TypeVar("_T")


class Transport(Protocol):
    """How a concurrency model waits for one socket.

    A wait that ends without success raises BlockingIOError: its time is over, or `wake` was called.
    """

    def recv(self, size: int, /) -> bytes:
        """Wait for input, at most the idle timeout, and return up to `size` bytes of it."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Wait for room, at most a part of the write timeout; return how many bytes were taken."""

    def sleep(self, seconds: float, /) -> None:
        """Let so many seconds pass for this connection alone."""

    def recv_within(self, size: int, seconds: float) -> bytes:
        """Do as `recv`, but wait at most so many seconds."""

    def wake(self) -> None:
        """End a `recv` that waits, or the next one; the main flow calls this when it drains."""

    def close(self) -> None:
        """Let go of what the model holds for the socket, but not of the socket."""


class BlockingTransport:
    """System calls that block the thread which calls them; the kernel keeps the timeouts.

    The socket stays in blocking mode, with SO_RCVTIMEO and SO_SNDTIMEO (inherited from the
    listener): Python's own ``settimeout`` would cost a ``poll`` before every read and write.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.recv = sock.recv
        self.send = sock.send
        self.sleep = time.sleep
        self._sock = sock
        self._thread = threading.get_ident()

    def recv_within(self, size: int, seconds: float) -> bytes:
        """Wait for input for at most `seconds`."""
        set_timeout(self._sock, socket.SO_RCVTIMEO, seconds)
        return self._sock.recv(size)

    def wake(self) -> None:
        """Shorten the timeout, then interrupt the wait.

        The order matters. A ``recv`` that began before is interrupted and, retried by Python
        (PEP 475), takes the new timeout; one that begins later finds it. Neither call alone
        would do: a timeout is read when the wait begins, and an interrupted call is repeated.
        """
        set_timeout(self._sock, socket.SO_RCVTIMEO, _SOON)
        pthread_kill(self._thread, NUDGE)

    def close(self) -> None:
        """Nothing is held."""


class Connection:
    """A client that was accepted, and holds one of the server's slots until it has ended."""

    __slots__ = (
        "_cut",
        "_service",
        "_wake",
        "bytes_discarded",
        "bytes_in",
        "bytes_out",
        "outcome",
        "peer",
        "sock",
    )

    def __init__(self, sock: socket.socket, peer: Any, service: "Service") -> None:
        self.sock = sock
        """The accepted socket."""
        self.peer = peer
        """The client's address, as ``accept`` gave it."""
        self.bytes_in = 0
        """Bytes that the handler was given."""
        self.bytes_out = 0
        """Bytes that the kernel took for the peer."""
        self.bytes_discarded = 0
        """Bytes that came after our FIN, and were read only to be thrown away."""
        self.outcome = ""
        """Why it ended; see `Totals`."""
        self._service = service
        self._wake: Callable[[], None] | None = None
        self._cut: Callable[[], None] | None = None

    # -- what a backend calls ------------------------------------------------------------------

    def serve(self, transport: "Callable[[socket.socket], Transport]" = BlockingTransport) -> None:
        """Serve this connection to its end, waiting in the way of `transport`.

        Whatever happens here stays here: the connection is closed, counted, and its slot freed.
        """
        service = self._service
        try:
            carrier = transport(self.sock)
            self._cut = self._shut_down
            self._wake = carrier.wake  # from here on, a drain ends the waits below
            try:
                outcome = self._converse(carrier)
            except OSError:
                outcome = "reset"
            except _HandlerFailed as failed:
                outcome = "handler_error"
                service.report_handler(failed.error)
                self._end_stream(carrier)
            finally:
                self._wake = self._cut = None  # nothing waits any more, and soon nothing is open
                carrier.close()
            self.outcome = self.outcome or outcome  # being cut shows as a reset, but is none
        finally:
            service.release(self)

    def handed_over(self, wake: Callable[[], None], cut: Callable[[], None]) -> None:
        """Another process serves it now: say how to reach that one, and close our copy.

        Args:
            wake: Tells it to drain; called again and again until `release`.
            cut: Tells it that the drain's time is over.
        """
        self.sock.close()
        self._wake, self._cut = wake, cut

    def release(self) -> None:
        """Nobody serves it any more: count what it did, and free its slot."""
        self._service.release(self)

    def refuse(self, error: BaseException) -> None:
        """Nothing could be started to serve it: close it, say so, free the slot."""
        self.outcome = "refused"
        self._service.log.warning_each_second(
            "client_refused", reason="cannot start a thread or process for it", error=str(error)
        )
        self._service.release(self)

    # -- what the service calls ----------------------------------------------------------------

    def wake(self) -> None:
        """End its wait for input, so that it notices the drain."""
        if self._wake is not None:
            self._wake()

    def cut(self) -> None:
        """End it: the drain's time is over."""
        if self._cut is not None:
            self.outcome = "cut"
            self._cut()

    def _shut_down(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    # -- the conversation ----------------------------------------------------------------------

    def _converse(self, transport: Transport) -> str:
        """Read, answer, until the peer's end, a timeout or the drain; return the outcome."""
        lifecycle = self._service.lifecycle
        handler = _ask(self._service.handler_class)
        recv = transport.recv
        try:
            while lifecycle.running:
                try:
                    data = recv(CHUNK)
                except BlockingIOError:
                    if lifecycle.draining:
                        break
                    self._answer(transport, _ask(handler.finish))
                    self._end_stream(transport)
                    return "idle_timeout"
                if not data:
                    return self._end_of_input(transport, handler)
                self._respond(transport, handler, data)
            # Draining. The first moment without input is as good an end as any: waiting for a
            # client to fall silent would wait for ever for one that asks as soon as it is answered.
            while time.monotonic() < lifecycle.stream_deadline:
                try:
                    data = self.sock.recv(CHUNK, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                if not data:
                    return self._end_of_input(transport, handler)
                self._respond(transport, handler, data)
            self._answer(transport, _ask(handler.finish))
        except _WriteTimeout:
            abort(self.sock)
            return "write_timeout"
        self._end_stream(transport)
        return "drained"

    def _respond(self, transport: Transport, handler: Handler, data: bytes) -> None:
        self.bytes_in += len(data)
        try:
            answer = handler.receive(data)
        except Exception as error:
            raise _HandlerFailed(error) from error
        if answer.__class__ is bytes:
            self._send(transport, answer)
        else:
            self._answer(transport, answer)

    def _answer(self, transport: Transport, answer: Answer) -> None:
        """Carry the steps of `answer` out, one after the other."""
        if isinstance(answer, _BYTES):
            self._send(transport, bytes(answer))
            return
        try:
            steps = iter(answer)
        except TypeError as error:
            raise _HandlerFailed(error) from error
        while True:
            try:
                step = next(steps, None)
            except Exception as error:
                raise _HandlerFailed(error) from error
            if step is None:
                return
            if isinstance(step, Sleep):
                transport.sleep(step.seconds)
            elif isinstance(step, _BYTES):
                self._send(transport, bytes(step))
            else:
                raise _HandlerFailed(TypeError(f"a step is bytes or Sleep, not {type(step)}"))

    def _send(self, transport: Transport, data: bytes) -> None:
        rest: bytes | memoryview = data
        unread, standstills = 0, 0
        while rest:
            try:
                taken = transport.send(rest)
            except BlockingIOError:
                # The kernel makes room in large steps. Whether the peer reads at all shows in
                # what it has acknowledged.
                before, unread = unread, undelivered(self.sock)
                standstills = standstills + 1 if unread == before else 0
                if standstills == WRITE_TIMEOUT_PARTS:
                    raise _WriteTimeout from None
                continue
            self.bytes_out += taken
            if taken == len(rest):
                return
            rest = memoryview(data)[len(data) - len(rest) + taken :]
            unread = standstills = 0

    # -- the end -------------------------------------------------------------------------------

    def _end_of_input(self, transport: Transport, handler: Handler) -> str:
        """The peer sent FIN: it has everything but what `finish` adds, and our FIN by close."""
        self._answer(transport, _ask(handler.finish))
        lifecycle = self._service.lifecycle
        if not lifecycle.running:
            # The process is about to go, perhaps with its whole network namespace, and the
            # kernel's copy of what is undelivered with it.
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
            while undelivered(self.sock) and time.monotonic() < lifecycle.deadline + LINGER:
                transport.sleep(_GLANCE)
        return "eof"

    def _end_stream(self, transport: Transport) -> None:
        """Send our FIN; then read, count and discard until the peer's, for at most a second.

        What the kernel has not delivered by then is waited for longer: as long as a peer may take
        none of what it is owed, or to the end of the drain.
        """
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        begun = time.monotonic()
        while self._worth_waiting(begun):
            try:
                data = transport.recv_within(CHUNK, _GLANCE)
            except BlockingIOError:
                continue
            if not data:
                break
            self.bytes_discarded += len(data)

    def _worth_waiting(self, begun: float) -> bool:
        lifecycle = self._service.lifecycle
        now = time.monotonic()
        # Whoever is still there at the drain's deadline is owed something: be gone before it.
        politeness = min(LINGER, (lifecycle.deadline - begun) / 2)
        if now < begun + politeness:
            return True
        if not lifecycle.running:
            return now < lifecycle.deadline + LINGER and undelivered(self.sock) > 0
        patience = self._service.config.write_timeout
        return (not patience or now < begun + patience) and undelivered(self.sock) > 0


class _WriteTimeout(Exception):  # noqa: N818 - a signal between two functions here
    """The peer took nothing of what it is owed for too long."""


class _HandlerFailed(Exception):  # noqa: N818 - likewise
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _ask(question: Callable[[], _T]) -> _T:
    try:
        return question()
    except Exception as error:
        raise _HandlerFailed(error) from error


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Set SO_RCVTIMEO or SO_SNDTIMEO (socket(7)); 0 is off."""
    timeval = divmod(math.ceil(seconds * 1e6), 1_000_000)  # up: what is not 0 must not become it
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", *timeval))


def undelivered(sock: socket.socket) -> int:
    """Return how many bytes of output the peer's kernel has not acknowledged (our FIN is one).

    (tcp(7), SIOCOUTQ. After a reset that figure stays where it was, so the state is asked first.)
    """
    if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
        return 0
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def abort(sock: socket.socket) -> None:
    """Make the close that follows a reset (RST), which frees the kernel's buffers at once."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
