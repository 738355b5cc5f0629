"""The bytes of one connection: each that is read is answered, in order.

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
from echoserver.system.sockets import abort, untaken

# One read, and so the most that a peer who does not read can make us hold for it. It is the
# high-water mark of every model: back-pressure begins where this much is unsent.
CHUNK = 64 * 1024

# The first reads ask for less: an object of up to 512 bytes comes from Python's own allocator,
# and a twelfth of a microsecond sooner. One that is filled is the last of its kind.
_SMALL_CHUNK = 448

POLL_INTERVAL = 1.0
"""Seconds between two looks at whether the server drains, where nothing else ends a wait."""

# A send gives up after this part of the write timeout, to look whether the peer reads at all. And
# not later than this: signals that ask a worker whether it lives restart the wait, and come
# every six seconds.
_WRITE_TIMEOUT_PARTS = 4

_LONGEST_WRITE_PATIENCE = 5.0

_WRITE_TIMEOUT_MET = 0.99  # clocks differ a little

# Records of TLS that were read together, and are answered before others have their turn:
# a thousand of one byte can come at once, and a loop has one thread.
_MOST_RECORDS = 64

_UNUSED = Readable(-1)  # of a connection that never yields where it reads

# Seconds in which a client that was accepted, and has sent nothing yet, may still do so when the
# drain begins: the process that takes over cannot know of it.
_FIRST_MESSAGE_GRACE = 1.0

_EOF = Outcome.EOF  # as in `connection`

# What a handler may return although it is told to return bytes: it means the same.
_BYTES = (bytes, bytearray, memoryview)


class Exchange:
    """One connection's bytes: what was read, what its handler owes, and what was sent.

    Args:
        sock: The accepted socket.
        terms: What holds for it.
    """

    __slots__ = (
        "asked_to_leave",
        "bytes_discarded",
        "bytes_in",
        "bytes_out",
        "owed",
        "sock",
        "stream",
        "terms",
        "tls",
    )

    def __init__(self, sock: socket.socket, terms: Terms) -> None:
        self.sock = sock
        """The accepted socket."""
        self.stream: Stream = sock
        """What is read and written: that socket, or TLS over it."""
        self.tls: Tls | None = None
        """TLS over the socket, where it is spoken."""
        self.bytes_in = 0
        """Bytes that the handler was given."""
        self.bytes_out = 0
        """Bytes that the kernel took for the peer."""
        self.bytes_discarded = 0
        """Bytes that came after our FIN, and were read only to be thrown away."""
        self.owed = False
        """Its handler is at work on an answer that takes its time."""
        self.terms = terms
        """What holds for it."""
        self.asked_to_leave = False
        """It ends as soon as it is owed nothing, to make room for another client."""

    def greet(self, tls: Tls) -> Flow:
        """Shake hands, with a peer that may be in no hurry."""
        lifecycle, fd = self.terms.lifecycle, self.sock.fileno()
        patience = self.terms.config.handshake_timeout or math.inf
        deadline = time.monotonic() + patience
        while True:
            try:
                tls.handshake(socket.MSG_DONTWAIT)
            except BlockingIOError:
                left = min(deadline, lifecycle.stream_deadline) - time.monotonic()
            except ConnectionResetError:
                if not tls.touched:
                    # It only looked whether someone listens.
                    raise ConversationEnded(Outcome.EOF) from None
                raise ConnectionLost(
                    Outcome.TLS_FAILED, "the peer broke off the handshake"
                ) from None
            else:
                if self.asked_to_leave:  # it did not wait where it could have been woken
                    raise ConversationEnded(Outcome.SHED)
                return
            if left <= 0 or self.asked_to_leave:
                self.stream = self.sock
                raise ConversationEnded(
                    Outcome.SHED if self.asked_to_leave else Outcome.TLS_TIMEOUT
                )
            wait = Writable if tls.blocked else Readable
            yield wait(fd, min(left, POLL_INTERVAL))

    def answer(  # noqa: C901, PLR0912 - flat, because a call per message would cost as much as the rest
        self, handler: Handler, *, blocking: bool, new: bool
    ) -> Generator[Wait, WaitResult, Outcome]:
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
        lifecycle = self.terms.lifecycle
        recv, send, receive = self.stream.recv, self.stream.send, handler.receive
        readable = _UNUSED if blocking else Readable(self.sock.fileno())
        chunk, tls, records = _SMALL_CHUNK, self.tls, 0
        while lifecycle.running:
            try:
                # Before waiting: a new connection has often brought its first message along.
                data = recv(chunk)
            except BlockingIOError as nothing:
                if blocking and not (yield from self._awaits_content(nothing)):
                    break
            else:
                if not data:
                    return _EOF
                received = len(data)
                self.bytes_in += received
                if received >= chunk:
                    chunk = CHUNK
                try:
                    answer = receive(data)
                except BaseException as error:
                    raise HandlerFailed(error) from error
                if type(answer) is bytes and answer:  # the fast path
                    try:
                        taken = send(answer)
                    except BlockingIOError:
                        taken = 0
                    self.bytes_out += taken
                    if taken != len(answer):
                        yield from self._send_rest(memoryview(answer)[taken:])
                else:
                    yield from self.carry_out(answer)
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
            return Outcome.SHED if self.asked_to_leave else Outcome.IDLE_TIMEOUT
        return (yield from self._drain_input(handler, new=new))

    def _awaits_content(self, nothing: BlockingIOError) -> Generator[Wait, WaitResult, bool]:
        """After a blocking read that brought nothing: tell whether there is more to read.

        TLS has bytes that are not application data; a peer that sends nothing else counts as idle.
        """
        if self.tls is None or not isinstance(nothing, NoApplicationData):
            return False
        patience = self.terms.config.idle_timeout or math.inf
        while self.terms.lifecycle.running and not self.asked_to_leave:
            left = self.tls.heard + patience - time.monotonic()
            if left <= 0:
                break
            if not (yield Readable(self.sock.fileno(), min(left, POLL_INTERVAL))):
                return True
        return False

    def _drain_input(self, handler: Handler, *, new: bool) -> Generator[Wait, WaitResult, Outcome]:
        """Draining: answer what is there, up to the first moment without input.

        It is as good an end as any: waiting for a client to fall silent would wait for ever for
        one that asks as soon as it is answered.
        """
        first_message = self.terms.lifecycle.retiring or (new and self.tls is not None)
        while time.monotonic() < self.terms.lifecycle.stream_deadline:
            try:
                data = self.stream.recv(CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not first_message or self.bytes_in:
                    break
                # Accepted, and nothing was read of it: the process that takes over cannot know it.
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
            taken = self.stream.send(data) if data else 0
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
        timeout = self.terms.config.write_timeout
        patience = write_patience(timeout) or None
        unread, since = untaken(self.sock), time.monotonic()
        while rest:
            yield Writable(self.sock.fileno(), patience)
            try:
                taken = self.stream.send(rest)
            except BlockingIOError:
                taken = 0
            self.bytes_out += taken
            rest = rest[taken:]
            still_unread = untaken(self.sock)
            if taken or still_unread != unread:
                unread, since = still_unread, time.monotonic()
            elif timeout and time.monotonic() - since > timeout * _WRITE_TIMEOUT_MET:
                abort(self.sock)
                raise ConnectionLost(Outcome.WRITE_TIMEOUT)


def write_patience(write_timeout: float) -> float:
    """Return how long one attempt to send may wait for room; 0: for ever."""
    return min(write_timeout / _WRITE_TIMEOUT_PARTS, _LONGEST_WRITE_PATIENCE)
