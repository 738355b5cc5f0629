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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from signal import pthread_kill
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from echoserver.handlers import Answer, Handler, Sleep
from echoserver.lifecycle import NUDGE, in_main_thread

if TYPE_CHECKING:
    from echoserver.service import Service

# One read, and so the most that a peer who does not read can make us hold for it. It is the
# high-water mark of every model: back-pressure begins where this much is unsent.
CHUNK = 64 * 1024

# Seconds that a connection which we end waits for the peer's end. Closing with unread input makes
# the kernel send RST, and that destroys output still on its way (RFC 1122, 4.2.2.13).
LINGER = 1.0

# A send gives up after this part of the write timeout, to look whether the peer reads at all.
WRITE_TIMEOUT_PARTS = 4
_WRITE_TIMEOUT_MET = 0.99  # clocks differ a little

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

    blocks_thread: bool
    """It waits in system calls that stop the thread."""

    def recv(self, size: int, /) -> bytes:
        """Wait for input, at most the idle timeout, and return up to `size` bytes of it."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Wait for room, at most a part of the write timeout; return how many bytes were taken.

        None at all may be 0, or BlockingIOError.
        """

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

    blocks_thread = True

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)  # whatever socket.setdefaulttimeout says in this program
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
        try:
            self.converse(transport)
        finally:
            self.release()

    def converse(
        self, transport: "Callable[[socket.socket], Transport]" = BlockingTransport
    ) -> None:
        """Do as `serve`, but leave the socket open and the slot taken.

        For a forked child, whose parent has the slot.
        """
        try:
            carrier = transport(self.sock)
            self._cut = self._shut_down
            self._wake = carrier.wake  # from here on, a drain ends the waits below
            with self._interruptible(carrier):
                outcome = self._conduct(carrier)
        except Exception as error:  # noqa: BLE001 - one connection's failure is nobody else's
            self._service.report_failure("connection_failed", error)
            outcome = "reset"
        self.outcome = self.outcome or outcome  # being cut shows as a reset, but is none

    def handed_over(self, terminate: Callable[[], None]) -> None:
        """Another process serves it now: close our copy of its socket.

        Args:
            terminate: Tells that process to drain, and again when the drain's time is over.
        """
        self.sock.close()
        self._wake = self._cut = terminate

    def release(self) -> None:
        """Nobody serves it any more: count what it did, and free its slot."""
        self._service.release(self)

    def refuse(self, error: BaseException) -> None:
        """Nothing could be started to serve it: close it, say so, free the slot."""
        self.outcome = "refused"
        self._service.log.warning_each_second(
            "client_refused", reason="cannot start a thread or process for it", error=str(error)
        )
        self.release()

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

    @contextmanager
    def _interruptible(self, transport: Transport) -> Iterator[None]:
        """Let signals reach the waits, where they block the thread that handles signals."""
        here = transport.blocks_thread and in_main_thread()
        lifecycle = self._service.lifecycle
        with lifecycle.interrupting(self.wake, self.cut) if here else nullcontext():
            try:
                yield
            finally:
                self._wake = self._cut = None  # nothing waits any more, and soon nothing is open
                transport.close()

    # -- the conversation ----------------------------------------------------------------------

    def _conduct(self, transport: Transport) -> str:
        """Serve until the peer's end, a timeout or the drain; return the outcome."""
        try:
            handler = _ask(self._service.handler_class)
            ending = self._read_and_answer(transport, handler)
            self._carry_out(transport, _ask(handler.finish))
        except _WriteTimeout:
            abort(self.sock)
            return "write_timeout"
        except _HandlerFailed as failed:
            self._service.report_failure("handler_failed", failed.error)
            ending = "handler_error"
        except OSError:
            return "reset"
        with suppress(OSError):
            self._end_stream(transport, peer_has_ended=ending == "eof")
        return ending

    def _read_and_answer(self, transport: Transport, handler: Handler) -> str:
        """Answer everything that is read, until there is a reason to stop; return the reason."""
        lifecycle = self._service.lifecycle
        recv = transport.recv
        while lifecycle.running:
            try:
                data = recv(CHUNK)
            except BlockingIOError:
                if time.monotonic() < lifecycle.drain_started:  # it has not begun
                    return "idle_timeout"
                break
            if not data:
                return "eof"
            self._respond(transport, handler, data)
        # Draining. The first moment without input is as good an end as any: waiting for a client
        # to fall silent would wait for ever for one that asks as soon as it is answered.
        while time.monotonic() < lifecycle.stream_deadline:
            try:
                data = self.sock.recv(CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not data:
                return "eof"
            self._respond(transport, handler, data)
        return "drained"

    def _respond(self, transport: Transport, handler: Handler, data: bytes) -> None:
        self.bytes_in += len(data)
        try:
            answer = handler.receive(data)
        except BaseException as error:
            raise _HandlerFailed(error) from error
        if answer.__class__ is bytes:  # the fast path
            self._send(transport, answer)
        else:
            self._carry_out(transport, answer)

    def _carry_out(self, transport: Transport, answer: Answer) -> None:
        """Send the bytes of `answer`, or carry out its steps one after the other."""
        if isinstance(answer, _BYTES):
            answer = [bytes(answer)]
        try:
            steps = iter(answer)
        except BaseException as error:
            raise _HandlerFailed(HandlerTypeError(answer)) from error
        while True:
            try:
                step = next(steps)
            except StopIteration:
                return
            except BaseException as error:
                raise _HandlerFailed(error) from error
            if isinstance(step, Sleep):
                transport.sleep(step.seconds)
            elif isinstance(step, _BYTES):
                self._send(transport, bytes(step))
            else:
                raise _HandlerFailed(HandlerTypeError(step))

    def _send(self, transport: Transport, data: bytes) -> None:
        try:
            taken = transport.send(data) if data else 0
        except BlockingIOError:
            taken = 0
        self.bytes_out += taken
        if taken < len(data):
            self._send_rest(transport, memoryview(data)[taken:])

    def _send_rest(self, transport: Transport, rest: memoryview) -> None:
        """Send to a peer that is slow to read, for as long as it reads at all.

        The kernel makes room in steps that a slow reader takes long to free. So whether it reads
        is seen by what it has acknowledged.
        """
        timeout = self._service.config.write_timeout
        unread, since = undelivered(self.sock), time.monotonic()
        while rest:
            try:
                taken = transport.send(rest)
            except BlockingIOError:
                taken = 0
            self.bytes_out += taken
            rest = rest[taken:]
            still_unread = undelivered(self.sock)
            if taken or still_unread != unread:
                unread, since = still_unread, time.monotonic()
            elif timeout and time.monotonic() - since > timeout * _WRITE_TIMEOUT_MET:
                raise _WriteTimeout

    # -- the end -------------------------------------------------------------------------------

    def _end_stream(self, transport: Transport, *, peer_has_ended: bool) -> None:
        """Send our FIN, and stay until closing cannot destroy anything.

        A peer that has ended its stream has nothing more to say: the kernel delivers what is left
        and closes by itself. Unless we drain: then the process is about to go, perhaps with its
        whole network namespace, and the kernel's copy of what is undelivered with it.
        """
        lifecycle = self._service.lifecycle
        if peer_has_ended and lifecycle.running:
            return
        self.sock.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        if not peer_has_ended:
            # Whoever is still there at the drain's deadline is owed something: be gone before it.
            polite_until = begun + min(LINGER, (lifecycle.deadline - begun) / 2)
            while (left := polite_until - time.monotonic()) > 0 and not peer_has_ended:
                peer_has_ended = self._discard(transport, min(left, _GLANCE))
        while undelivered(self.sock) and time.monotonic() < self._delivery_deadline(begun):
            if peer_has_ended:
                transport.sleep(_GLANCE)
            else:
                peer_has_ended = self._discard(transport, _GLANCE)

    def _delivery_deadline(self, begun: float) -> float:
        """Return until when to wait for a peer that does not take what the kernel has for it."""
        lifecycle = self._service.lifecycle
        if not lifecycle.running:
            return lifecycle.deadline + LINGER  # so that it is still there at the deadline
        return begun + (self._service.config.write_timeout or math.inf)

    def _discard(self, transport: Transport, seconds: float) -> bool:
        """Read and count what comes after our FIN; tell whether it was the peer's."""
        try:
            data = transport.recv_within(CHUNK, seconds)
        except BlockingIOError:
            return False
        self.bytes_discarded += len(data)
        return not data


class HandlerTypeError(TypeError):
    """A handler returned what is neither bytes nor a step; the message holds no payload."""

    def __init__(self, found: object) -> None:
        super().__init__(
            f"an answer is bytes, or steps of bytes and Sleep, not {type(found).__name__}"
        )


class _WriteTimeout(Exception):  # noqa: N818 - a signal between two functions here
    """The peer took nothing of what it is owed for too long."""


class _HandlerFailed(Exception):  # noqa: N818 - likewise
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def _ask(question: Callable[[], _T]) -> _T:
    try:
        return question()
    except BaseException as error:  # SystemExit, too, is one connection's failure
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
