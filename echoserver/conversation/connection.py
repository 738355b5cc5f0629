"""One client's connection: the conversation every model drives, and a close that loses nothing.

The byte contract: every byte read is answered, in order, before our FIN. What a client gets back
is always an exact prefix of what it is owed, then the end of the stream.
"""

import math
import socket
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from echoserver.conversation.failures import HandlerTypeError
from echoserver.drivers import blocking
from echoserver.errors import NoContentError, TlsError
from echoserver.flow import Driver, Flow, InVain, Readable, Sleep, Wait, Writable
from echoserver.handlers import Answer, Handler
from echoserver.lifecycle.state import State
from echoserver.system.sockets import abort, undelivered, untaken

# One read, and so the most that a peer who does not read can make us hold for it. It is the
# high-water mark of every model: back-pressure begins where this much is unsent.
CHUNK = 64 * 1024

# The first reads ask for less: an object of up to 512 bytes comes from Python's own allocator,
# and a twelfth of a microsecond sooner. One that is filled is the last of its kind.
_SMALL_CHUNK = 448

# Seconds that a connection which we end waits for the peer's end. Closing with unread input makes
# the kernel send RST, and that destroys output still on its way (RFC 1122, 4.2.2.13).
LINGER = 1.0

# A send gives up after this part of the write timeout, to look whether the peer reads at all. And
# not later than this: signals that ask a worker whether it lives begin the wait anew, and come
# every six seconds.
_WRITE_TIMEOUT_PARTS = 4
_LONGEST_WRITE_PATIENCE = 5.0
_WRITE_TIMEOUT_MET = 0.99  # clocks differ a little

# Records of TLS that were read together, and are answered before others have their turn:
# a thousand of one byte can come at once, and a loop has one thread.
_MOST_RECORDS = 64

_UNUSED = Readable(-1)  # of a connection that never yields where it reads

_FIRST_WORDS = 1.0  # seconds
_LOOK = 1.0  # seconds between two looks of a handshake at whether the server drains
_GLANCE = 0.05  # seconds between two looks at what the kernel has still to deliver
# What a handler may return although it is told to return bytes: it means the same.
_BYTES = (bytes, bytearray, memoryview)

_T = TypeVar("_T")


class Timeouts(Protocol):
    """How long a connection waits; see `Config`."""

    @property
    def idle_timeout(self) -> float:
        """Seconds without a byte from the peer."""

    @property
    def write_timeout(self) -> float:
        """Seconds in which the peer takes nothing."""

    @property
    def handshake_timeout(self) -> float:
        """Seconds that a TLS handshake may take."""


class Stream(Protocol):
    """What a conversation goes over: a socket, or TLS over one."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Return what has come, about `size` bytes; b"" at the end (recv(2))."""

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Return how much of `data` was taken (send(2))."""


class Tls(Stream, Protocol):
    """TLS over a socket; see `echoserver.conversation.tls.TlsSocket`."""

    touched: bool
    """The peer has sent something."""
    truncated: bool
    """The peer's stream ended without a close_notify."""
    heard: float
    """When content came last (``monotonic``)."""
    comes_back: bool
    """Its ``recv`` raises `NoContentError` where it waited, and what came was no content."""

    @property
    def blocked(self) -> bool:
        """There is something to be sent for which the socket had no room."""

    @property
    def pending(self) -> bool:
        """Its ``recv`` has something to tell for which the socket is not readable."""

    def handshake(self, flags: int = 0) -> None:
        """Greet, and be greeted."""

    def close_notify(self, flags: int = 0) -> None:
        """End our direction of the stream."""


class Host(Protocol):
    """What a connection needs of the process that serves it."""

    @property
    def config(self) -> Timeouts:
        """What holds now."""

    @property
    def lifecycle(self) -> State:
        """Says when to end."""

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


class Connection:
    """A client that was accepted, and holds one of the server's slots until it has ended."""

    __slots__ = (
        "_accounted",
        "_asked_to_leave",
        "_driver",
        "_flow",
        "_host",
        "_moved_before",
        "_quiet_since",
        "_remote",
        "_stream",
        "_swept",
        "_terminate",
        "_tls",
        "_told_to_end",
        "bytes_discarded",
        "bytes_in",
        "bytes_out",
        "counted",
        "outcome",
        "owed",
        "peer",
        "since",
        "sock",
    )

    def __init__(self, sock: socket.socket, peer: Any, host: Host) -> None:
        self.sock = sock
        """The accepted socket."""
        self.peer = peer
        """The client's address, as ``accept`` gave it: host and port first. See `addresses`."""
        self.bytes_in = 0
        """Bytes that the handler was given."""
        self.bytes_out = 0
        """Bytes that the kernel took for the peer."""
        self.bytes_discarded = 0
        """Bytes that came after our FIN, and were read only to be thrown away."""
        self.since = time.monotonic()
        """When it was accepted (``monotonic``)."""
        self.counted = False
        """It counts against what its address may have."""
        self.outcome = ""
        """Why it ended: ``eof``, ``drained``, ``idle_timeout``, or what `Totals` counts."""
        self._host = host
        self._tls: Tls | None = None
        self._stream: Stream = sock
        self._driver: Driver | None = None
        self._flow: Flow | None = None
        self._terminate: Callable[[], None] | None = None
        self._remote: tuple[str, int] | None = None
        self._asked_to_leave = False
        self._told_to_end = False
        self.owed = False
        """Its handler is at work on an answer that takes its time."""
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
        self._stream = self.sock
        if self._host.secure is not None:
            self._stream = self._tls = self._host.secure(self.sock)
            self._tls.comes_back = True
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
        self.outcome = "refused"
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
        self._asked_to_leave = True
        self.wake()

    def left(self, outcome: str) -> None:
        """Another process has served it to its end, for which it gives this reason."""
        if self._asked_to_leave and outcome in {"drained", "tls_timeout"}:
            outcome = "shed"
        self.outcome = self.outcome or outcome

    def cut(self) -> None:
        """End it: the drain's time is over."""
        self.outcome = "cut"
        if self._terminate is not None:
            self._terminate()
        else:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Release it, wherever it is: even being cut did not end it."""
        self.outcome = "abandoned"
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
        """Close the socket, after whoever still watches it has let go of it."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        self.sock.close()

    # -- the conversation ----------------------------------------------------------------------

    def _live(self, *, blocking: bool) -> Flow:
        """Answer until there is a reason to stop; then end, losing nothing."""
        host = self._host
        ending = "reset"
        try:
            ending = yield from self._converse(blocking=blocking)
            peer_has_ended = ending == "eof"
            if peer_has_ended and self._tls is not None and self._tls.truncated:
                ending = "truncated"
            yield from self._end(peer_has_ended=peer_has_ended)
        except _Broken as broken:
            ending = broken.outcome
        except OSError:
            pass  # in the conversation, that is the reset; afterwards, nobody is owed anything
        except Exception as error:  # noqa: BLE001 - one connection's failure is nobody else's
            host.report_failure("connection_failed", error)
            ending = "reset"
        finally:
            self.outcome = self.outcome or ending  # being cut shows as a reset, but is none
            host.release(self)

    def _converse(self, *, blocking: bool) -> Generator[Wait, InVain, str]:
        """Greet and answer; return why it is over."""
        host = self._host
        try:
            if self._tls is not None:
                yield from self._greet(self._tls)
            new = not host.lifecycle.running
            handler = _ask(host.make_handler)
            ending = yield from self._answer(handler, blocking=blocking, new=new)
            if last := _ask(handler.finish):
                yield from self._carry_out(last)
        except _Over as over:
            return over.outcome
        except TlsError as error:
            host.report_tls_failure(self, error.strerror or "")
            self._stream = self.sock  # what may still come means nothing
            return "tls_failed"
        except _HandlerFailed as failed:
            host.report_failure("handler_failed", failed.error)
            return "handler_error"
        return ending

    def _greet(self, tls: Tls) -> Flow:
        """Shake hands, with a peer that may be in no hurry."""
        lifecycle, fd = self._host.lifecycle, self.sock.fileno()
        patience = self._host.config.handshake_timeout or math.inf
        deadline = time.monotonic() + patience
        while True:
            try:
                tls.handshake(socket.MSG_DONTWAIT)
            except BlockingIOError:
                left = min(deadline, lifecycle.stream_deadline) - time.monotonic()
            except ConnectionResetError:
                if not tls.touched:
                    raise _Over("eof") from None  # it only looked whether someone listens
                self._host.report_tls_failure(self, "the peer broke off the handshake")
                raise _Broken("tls_failed") from None
            else:
                if self._asked_to_leave:  # it did not wait where it could have been woken
                    raise _Over("shed")
                return
            if left <= 0 or self._asked_to_leave:
                self._stream = self.sock
                raise _Over("shed" if self._asked_to_leave else "tls_timeout")
            wait = Writable if tls.blocked else Readable
            yield wait(fd, min(left, _LOOK))

    def _answer(  # noqa: C901, PLR0912 - flat, because a call per message would cost as much as the rest
        self, handler: Handler, *, blocking: bool, new: bool
    ) -> Generator[Wait, InVain, str]:
        """Answer all that is read: the loop that every message of every model goes through.

        Where the socket blocks, the kernel's EAGAIN says that the idle timeout is over, or that
        someone ends the wait.

        Args:
            handler: What to answer.
            blocking: Whether the socket blocks.
            new: The drain had begun before the peer could say anything.

        Returns:
            Why it ended: ``eof``, ``idle_timeout`` or ``drained``.
        """
        lifecycle = self._host.lifecycle
        recv, send, receive = self._stream.recv, self._stream.send, handler.receive
        readable = _UNUSED if blocking else Readable(self.sock.fileno())
        chunk, tls, records = _SMALL_CHUNK, self._tls, 0
        while lifecycle.running:
            try:
                # Before waiting: a new connection has often brought its first message along.
                data = recv(chunk)
            except BlockingIOError as nothing:
                if blocking and not (yield from self._awaits_content(nothing)):
                    break
            else:
                if not data:
                    return "eof"
                received = len(data)
                self.bytes_in += received
                if received >= chunk:
                    chunk = CHUNK
                try:
                    answer = receive(data)
                except BaseException as error:
                    raise _HandlerFailed(error) from error
                if type(answer) is bytes and answer:  # the fast path
                    try:
                        taken = send(answer)
                    except BlockingIOError:
                        taken = 0
                    self.bytes_out += taken
                    if taken != len(answer):
                        yield from self._send_rest(memoryview(answer)[taken:])
                else:
                    yield from self._carry_out(answer)
                # Before the next read, which takes its memory first, and may wait with it: of many
                # threads, each would keep two chunks.
                data = answer = b""
            if blocking:
                continue
            if tls is not None and tls.pending:
                records += 1
                if records % _MOST_RECORDS == 0:
                    yield Readable(readable.fd, 0.0)
            elif (yield readable):
                break
        if lifecycle.running:
            return "shed" if self._asked_to_leave else "idle_timeout"
        return (yield from self._take_what_has_come(handler, new=new))

    def _awaits_content(self, nothing: BlockingIOError) -> Generator[Wait, InVain, bool]:
        """After a blocking read that brought nothing: tell whether there is more to read.

        TLS has bytes that are no content; whoever sends nothing else is as good as silent.
        """
        if self._tls is None or not isinstance(nothing, NoContentError):
            return False
        patience = self._host.config.idle_timeout or math.inf
        while self._host.lifecycle.running and not self._asked_to_leave:
            left = self._tls.heard + patience - time.monotonic()
            if left <= 0:
                break
            if not (yield Readable(self.sock.fileno(), min(left, _LOOK))):
                return True
        return False

    def _take_what_has_come(self, handler: Handler, *, new: bool) -> Generator[Wait, InVain, str]:
        """Draining: answer what is there, up to the first moment without input.

        It is as good an end as any: waiting for a client to fall silent would wait for ever for
        one that asks as soon as it is answered.
        """
        first_words = self._host.lifecycle.retiring or (new and self._tls is not None)
        while time.monotonic() < self._host.lifecycle.stream_deadline:
            try:
                data = self._stream.recv(CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not first_words or self.bytes_in:
                    break
                # Accepted, and nothing was read of it: the process that takes over cannot know it.
                first_words = False
                yield Readable(self.sock.fileno(), _FIRST_WORDS)
                continue
            if not data:
                return "eof"
            self.bytes_in += len(data)
            try:
                answer = handler.receive(data)
            except BaseException as error:
                raise _HandlerFailed(error) from error
            yield from self._carry_out(answer)
        return "drained"

    def _carry_out(self, answer: Answer) -> Flow:
        """Send the bytes of `answer`, or carry out its steps one after the other."""
        if isinstance(answer, _BYTES):
            answer = [bytes(answer)]
        try:
            steps = iter(answer)
        except BaseException as error:
            raise _HandlerFailed(HandlerTypeError(answer)) from error
        self.owed = True
        while True:
            try:
                step = next(steps)
            except StopIteration:
                self.owed = False
                return
            except BaseException as error:
                raise _HandlerFailed(error) from error
            if isinstance(step, Sleep):
                yield step
            elif isinstance(step, _BYTES):
                yield from self._send(bytes(step))
            else:
                raise _HandlerFailed(HandlerTypeError(step))

    def _send(self, data: bytes) -> Flow:
        try:
            taken = self._stream.send(data) if data else 0
        except BlockingIOError:
            taken = 0
        self.bytes_out += taken
        if taken < len(data):
            yield from self._send_rest(memoryview(data)[taken:])

    def _send_rest(self, rest: memoryview) -> Flow:
        """Send to a peer that is slow to read, for as long as it reads at all.

        The kernel makes room in steps that a slow reader takes long to free. So whether it reads
        is seen by what it has acknowledged.
        """
        timeout = self._host.config.write_timeout
        patience = write_patience(timeout) or None
        unread, since = untaken(self.sock), time.monotonic()
        while rest:
            yield Writable(self.sock.fileno(), patience)
            try:
                taken = self._stream.send(rest)
            except BlockingIOError:
                taken = 0
            self.bytes_out += taken
            rest = rest[taken:]
            still_unread = untaken(self.sock)
            if taken or still_unread != unread:
                unread, since = still_unread, time.monotonic()
            elif timeout and time.monotonic() - since > timeout * _WRITE_TIMEOUT_MET:
                abort(self.sock)
                raise _Broken("write_timeout")

    # -- the end -------------------------------------------------------------------------------

    def _end(self, *, peer_has_ended: bool) -> Flow:
        """End our direction, in a way that destroys nothing that is on its way.

        A peer that has ended its stream has nothing more to say: the kernel delivers what is left
        and closes by itself. Unless we drain: then the process is about to go, perhaps with its
        whole network namespace, and the kernel's copy of it with it.
        """
        if self._tls is not None:
            yield from self._say_goodbye(self._tls)
        if not (peer_has_ended and self._host.lifecycle.running):
            yield from self._end_stream(peer_has_ended=peer_has_ended)

    def _say_goodbye(self, tls: Tls) -> Flow:
        """End our direction of the stream, for TLS."""
        patience = self._host.config.write_timeout or math.inf
        deadline = time.monotonic() + patience
        while True:
            try:
                tls.close_notify()
            except BlockingIOError:
                left = min(deadline, self._host.lifecycle.deadline) - time.monotonic()
            else:
                return
            if left <= 0:
                return
            yield Writable(self.sock.fileno(), min(left, _LOOK))

    def _end_stream(self, *, peer_has_ended: bool) -> Flow:
        """Send our FIN, and stay until closing cannot destroy anything."""
        lifecycle = self._host.lifecycle
        self.sock.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        if not peer_has_ended:
            # Whoever is still there at the drain's deadline is owed something: be gone before it.
            polite_until = begun + min(LINGER, (lifecycle.deadline - begun) / 2)
            while (left := polite_until - time.monotonic()) > 0 and not peer_has_ended:
                peer_has_ended = yield from self._discard(left)
        while undelivered(self.sock) and time.monotonic() < self._delivery_deadline(begun):
            if peer_has_ended:
                yield Sleep(_GLANCE)
            else:
                peer_has_ended = yield from self._discard(_GLANCE)

    def _delivery_deadline(self, begun: float) -> float:
        """Return until when to wait for a peer that does not take what the kernel has for it."""
        lifecycle = self._host.lifecycle
        if not lifecycle.running:
            return lifecycle.deadline + LINGER  # so that it is still there at the deadline
        return begun + (self._host.config.write_timeout or math.inf)

    def _discard(self, seconds: float) -> Generator[Wait, InVain, bool]:
        """Read and count what comes after our FIN; tell whether it was the peer's."""
        pending = self._tls is not None and self._stream is self._tls and self._tls.pending
        if not pending and (yield Readable(self.sock.fileno(), seconds)):
            return False
        try:
            data = self._stream.recv(CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        self.bytes_discarded += len(data)
        return not data


class _Over(Exception):  # noqa: N818 - a signal between two functions here
    """It is over, before or in the conversation; the end is still to be made."""

    def __init__(self, outcome: str) -> None:
        super().__init__()
        self.outcome = outcome


class _Broken(Exception):  # noqa: N818 - likewise
    """It is over, and there is nobody left to make an end with."""

    def __init__(self, outcome: str) -> None:
        super().__init__()
        self.outcome = outcome


class _HandlerFailed(Exception):  # noqa: N818 - likewise
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def _ask(question: Callable[[], _T]) -> _T:
    try:
        return question()
    except BaseException as error:  # SystemExit, too, is one connection's failure
        raise _HandlerFailed(error) from error


def write_patience(write_timeout: float) -> float:
    """Return how long one attempt to send may wait for room; 0: for ever."""
    return min(write_timeout / _WRITE_TIMEOUT_PARTS, _LONGEST_WRITE_PATIENCE)
