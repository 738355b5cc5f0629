"""The bytes of one connection: all that are read are answered, in order.

The byte contract: what a client gets back is always an exact prefix of what it is owed.
"""

import math
import socket
import time
from collections.abc import Generator

from echoserver.conversation.endings import ConnectionLost, ConversationEnded, HandlerFailed
from echoserver.conversation.failures import HandlerTypeError
from echoserver.conversation.interfaces import Stream, Terms, Tls
from echoserver.errors import NoApplicationData
from echoserver.flow import Flow, Readable, Sleep, Wait, WaitResult, Writable
from echoserver.handlers import Answer, Handler
from echoserver.outcome import Outcome
from echoserver.system.sockets import reset_on_close, send_queue_size

# Bytes of one read, and so the most that a peer which does not read can make us hold for it. This
# is the high-water mark of every model: back-pressure begins where this much is unsent.
CHUNK = 64 * 1024

# The first reads ask for less, because Python's own allocator serves objects of up to 512 bytes, a
# twelfth of a microsecond faster. The first read that fills a small chunk is the last small one.
_SMALL_CHUNK = 448

POLL_INTERVAL = 1.0
"""Seconds between two checks for the drain, where nothing else ends a wait."""

# A send gives up after this part of the write timeout, to check whether the peer reads at all.
_WRITE_TIMEOUT_PARTS = 4

# And after this many seconds at the latest: a master's heartbeat signals restart a worker's wait,
# and come every six seconds.
_MAX_WRITE_PATIENCE = 5.0

# The part of the write timeout after which it counts as over: clocks differ a little.
_WRITE_TIMEOUT_TOLERANCE = 0.99

# TLS records that were read together, and are answered before other connections have their turn: a
# thousand records of one byte can come at once, and a loop has one thread.
_MAX_RECORDS_PER_TURN = 64

_UNUSED = Readable(-1)  # for a connection that blocks, and so never yields before a read

# Seconds in which a client that was accepted, and has sent nothing yet, may still do so when the
# drain begins: the process that takes over cannot know of it.
_FIRST_MESSAGE_GRACE = 1.0

_EOF = Outcome.EOF  # as in `connection`

# Types that are accepted where a handler should return bytes.
_BYTES = (bytes, bytearray, memoryview)


class Exchange:
    """One connection's bytes: what was read, what its handler owes, and what was sent.

    Args:
        sock: The accepted socket.
        terms: The timeouts and the state that apply to the connection.
    """

    __slots__ = (
        "bytes_discarded",
        "bytes_in",
        "bytes_out",
        "owed",
        "should_leave",
        "sock",
        "stream",
        "terms",
        "tls",
    )

    def __init__(self, sock: socket.socket, terms: Terms) -> None:
        self.sock = sock
        """The accepted socket."""
        self.stream: Stream = sock
        """What is read from and written to: the socket, or TLS over it."""
        self.tls: Tls | None = None
        """TLS over the socket; None: a plain connection."""
        self.bytes_in = 0
        """Bytes that the handler was given."""
        self.bytes_out = 0
        """Bytes that the kernel took for the peer."""
        self.bytes_discarded = 0
        """Bytes that came after our FIN, and were read only to be discarded."""
        self.owed = False
        """Whether the handler is at work on an answer of several steps."""
        self.terms = terms
        """The timeouts and the state that apply to the connection."""
        self.should_leave = False
        """Whether to end as soon as the client is owed nothing, to make room for another one."""

    def shake_hands(self, tls: Tls) -> Flow:
        """Do the TLS handshake, within its timeout."""
        lifecycle, fd = self.terms.lifecycle, self.sock.fileno()
        patience = self.terms.config.handshake_timeout or math.inf
        deadline = time.monotonic() + patience
        while True:
            try:
                tls.handshake(socket.MSG_DONTWAIT)
            except BlockingIOError:
                remaining = min(deadline, lifecycle.stream_deadline) - time.monotonic()
            except ConnectionResetError:
                if not tls.peer_has_sent:
                    # The peer only checked whether the port is open.
                    raise ConversationEnded(Outcome.EOF) from None
                raise ConnectionLost(
                    Outcome.TLS_FAILED, "the peer broke off the handshake"
                ) from None
            else:
                if self.should_leave:  # it was not waiting when it was woken for that
                    raise ConversationEnded(Outcome.SHED)
                return
            if remaining <= 0 or self.should_leave:
                self.stream = self.sock
                raise ConversationEnded(Outcome.SHED if self.should_leave else Outcome.TLS_TIMEOUT)
            wait = Writable if tls.blocked else Readable
            yield wait(fd, min(remaining, POLL_INTERVAL))

    def answer(  # noqa: C901, PLR0912 - flat, because a call per message would cost as much as the rest
        self, handler: Handler, *, blocking: bool, new: bool
    ) -> Generator[Wait, WaitResult, Outcome]:
        """Answer all that is read: the loop that every message of every model goes through.

        Where the socket blocks, EAGAIN means that the idle timeout is over, or that the driver's
        `wake` has ended the wait.

        Args:
            handler: What answers.
            blocking: Whether the socket blocks.
            new: The drain had begun before the peer could send anything.

        Returns:
            Why the conversation ended: ``eof``, ``idle_timeout``, ``shed`` or ``drained``.
        """
        lifecycle = self.terms.lifecycle
        recv, send, receive = self.stream.recv, self.stream.send, handler.receive
        readable = _UNUSED if blocking else Readable(self.sock.fileno())
        chunk, tls, records = _SMALL_CHUNK, self.tls, 0
        while lifecycle.running:
            try:
                # Read before waiting: a new connection has often brought its first message along.
                data = recv(chunk)
            except BlockingIOError as error:
                if blocking:  # the idle timeout is over, or the driver's `wake` has ended the wait
                    if tls is None or not isinstance(error, NoApplicationData):
                        break
                    if not (yield from self._await_application_data(tls)):
                        break
            else:
                if not data:
                    return _EOF
                size = len(data)
                self.bytes_in += size
                if size >= chunk:
                    chunk = CHUNK
                try:
                    answer = receive(data)
                except BaseException as error:
                    raise HandlerFailed(error) from error
                if type(answer) is bytes and answer:  # the fast path
                    try:
                        sent_bytes = send(answer)
                    except BlockingIOError:
                        sent_bytes = 0
                    self.bytes_out += sent_bytes
                    if sent_bytes != len(answer):
                        yield from self._send_rest(memoryview(answer)[sent_bytes:])
                else:
                    yield from self.carry_out(answer)
                # Freed before the next read, which allocates its memory first, and may wait with
                # it. Otherwise each of many threads would keep two chunks.
                data = answer = b""
            if blocking:
                continue
            if tls is not None and tls.pending:
                records += 1
                if records % _MAX_RECORDS_PER_TURN == 0:
                    yield Readable(readable.fd, 0.0)
            else:
                expired = yield readable
                if expired:
                    break
        if lifecycle.running:
            return Outcome.SHED if self.should_leave else Outcome.IDLE_TIMEOUT
        return (yield from self._drain_input(handler, new=new))

    def _await_application_data(self, tls: Tls) -> Generator[Wait, WaitResult, bool]:
        """Wait after TLS records without application data; tell whether to read again.

        A peer that sends nothing else counts as idle.
        """
        patience = self.terms.config.idle_timeout or math.inf
        while self.terms.lifecycle.running and not self.should_leave:
            remaining = tls.last_data_time + patience - time.monotonic()
            if remaining <= 0:
                break
            if not (yield Readable(self.sock.fileno(), min(remaining, POLL_INTERVAL))):
                return True
        return False

    def _drain_input(self, handler: Handler, *, new: bool) -> Generator[Wait, WaitResult, Outcome]:
        """Answer during the drain what has come, up to the first moment without input.

        Waiting longer for a client to fall silent would never end for one that sends its next
        message as soon as it has its answer.
        """
        first_message = self.terms.lifecycle.retiring or (new and self.tls is not None)
        while time.monotonic() < self.terms.lifecycle.stream_deadline:
            try:
                data = self.stream.recv(CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not first_message or self.bytes_in:
                    break
                # The process that takes over cannot know this client, so its first message counts.
                first_message = False
                yield Readable(self.sock.fileno(), _FIRST_MESSAGE_GRACE)
                continue
            if not data:
                return _EOF
            self.bytes_in += len(data)
            try:
                answer = handler.receive(data)
            except BaseException as error:
                raise HandlerFailed(error) from error
            yield from self.carry_out(answer)
        return Outcome.DRAINED

    def carry_out(self, answer: Answer) -> Flow:
        """Send the bytes of `answer`, or carry out its steps one after the other."""
        if isinstance(answer, _BYTES):
            answer = [bytes(answer)]
        try:
            steps = iter(answer)
        except BaseException as error:
            raise HandlerFailed(HandlerTypeError(answer)) from error
        self.owed = True
        while True:
            try:
                step = next(steps)
            except StopIteration:
                self.owed = False
                return
            except BaseException as error:
                raise HandlerFailed(error) from error
            if isinstance(step, Sleep):
                yield step
            elif isinstance(step, _BYTES):
                yield from self._send(bytes(step))
            else:
                raise HandlerFailed(HandlerTypeError(step))

    def _send(self, data: bytes) -> Flow:
        try:
            sent_bytes = self.stream.send(data) if data else 0
        except BlockingIOError:
            sent_bytes = 0
        self.bytes_out += sent_bytes
        if sent_bytes < len(data):
            yield from self._send_rest(memoryview(data)[sent_bytes:])

    def _send_rest(self, rest: memoryview) -> Flow:
        """Send to a peer that is slow to read, for as long as it reads at all.

        The kernel makes room in steps that a slow reader takes long to free. So whether the peer
        reads is judged by what it has acknowledged.
        """
        timeout = self.terms.config.write_timeout
        patience = write_patience(timeout) or None
        backlog, last_progress = send_queue_size(self.sock), time.monotonic()
        while rest:
            yield Writable(self.sock.fileno(), patience)
            try:
                sent_bytes = self.stream.send(rest)
            except BlockingIOError:
                sent_bytes = 0
            self.bytes_out += sent_bytes
            rest = rest[sent_bytes:]
            new_backlog = send_queue_size(self.sock)
            if sent_bytes or new_backlog != backlog:
                backlog, last_progress = new_backlog, time.monotonic()
            elif timeout and time.monotonic() - last_progress > timeout * _WRITE_TIMEOUT_TOLERANCE:
                reset_on_close(self.sock)
                raise ConnectionLost(Outcome.WRITE_TIMEOUT)


def write_patience(write_timeout: float) -> float:
    """Return how many seconds one attempt to send may wait for room; 0: without limit."""
    return min(write_timeout / _WRITE_TIMEOUT_PARTS, _MAX_WRITE_PATIENCE)
