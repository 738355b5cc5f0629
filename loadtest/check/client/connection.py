"""The connection of a client to a server, with a timeline of every step."""

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from echoserver.system.sockets import reset_on_close
from loadtest.check.client.circumstances import Circumstances, new_socket
from loadtest.check.evidence import count, difference
from loadtest.check.failure import Failure, raise_own_limit

# Bytes of a client's buffers in the kernel, so few that not everything fits in.
SMALL_BUFFER = 64 << 10

_PIECE = 256 << 10  # bytes
_MOST = 1 << 20  # bytes that are read before sending is tried again
_STUCK = 0.02  # seconds in which nothing is taken, after which the server's buffers are full
_TOTAL_RETRANS = 100  # offset of tcpi_total_retrans in struct tcp_info, since Linux 2.6


class ClientConnection:
    """One client's connection.

    Every method that waits fails the check when what it waits for does not come: nothing happens
    for as long as the check's patience, or the check's time is over.
    """

    def __init__(self, trial: Circumstances, name: str, sock: socket.socket) -> None:
        self.trial = trial
        self.name = name
        self.sock = sock
        self._timeline = trial.timeline
        self._patience = trial.patience

    @classmethod
    def connect(
        cls,
        trial: Circumstances,
        name: str,
        buffer: int | None = None,
        *,
        greeting: bool = True,
        patience: float | None = None,
    ) -> "ClientConnection":
        """Connect, and read the greeting that the server sends to every client, which S4 judges.

        Args:
            trial: The check at hand.
            name: The name of the client in the timeline.
            buffer: Bytes of the client's own buffers in the kernel; None: the system's default.
            greeting: Read the greeting.
            patience: Seconds to wait for the connection; None: the check's.
        """
        sock = new_socket(trial)
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = cls(trial, name, sock)
        sock.settimeout(max(0.05, min(trial.left, patience or trial.patience)))
        try:
            sock.connect(trial.address)
        except OSError as error:
            raise_own_limit(error.errno)
            reason = _reason(error)
            trial.timeline.add(name, f"cannot connect: {reason}")
            if isinstance(error, ConnectionRefusedError) and (other := trial.elsewhere):
                reason += f"; the server listens on {other}"
            raise Failure(f"client {name} cannot connect: {reason}") from None
        sock.setblocking(False)
        trial.timeline.add(name, "connected")
        if greeting and trial.greeting:
            line.expect(trial.greeting, "the greeting that every client got before")
        return line

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        view = memoryview(data)
        while view:
            self._await(select.POLLOUT, f"client {self.name} cannot send: the server reads no more")
            view = view[self._send(view[:_PIECE]) :]

    def send_until_blocked(self, data: bytes, quiet: float) -> int:
        """Send without reading until nothing is taken for `quiet` seconds; return how much was."""
        sent, view = 0, memoryview(data)
        while sent < len(data) and self._ready(select.POLLOUT, quiet):
            sent += self._send(view[sent : sent + _PIECE])
        return sent

    def expect(self, owed: bytes, what: str = "reply", early: bytes = b"") -> None:
        """Read the bytes that are owed, except those that came early, and verify all of them."""
        self._exchange(b"", owed, what, early)

    def ask(self, question: bytes, what: str = "reply") -> None:
        """Send a question, and expect the answer."""
        self.send(question)
        self.expect(self.trial.answer(question), what)

    def converse(self, question: bytes, what: str = "reply") -> None:
        """Send a long question and read the answer meanwhile.

        The client reads when the server has taken nothing for a moment. So the server's buffers are
        full again and again, as with a client that is slower than the server.
        """
        self._exchange(question, self.trial.answer(question), what)

    def _exchange(self, question: bytes, owed: bytes, what: str, early: bytes = b"") -> None:
        view, sent, received = memoryview(question), 0, bytearray(early)
        try:
            self._compare(received, owed, what)
            while len(received) < len(owed):
                if sent < len(question) and (sent == 0 or self._ready(select.POLLOUT, _STUCK)):
                    sent += self._send(view[sent : sent + _PIECE])
                    continue
                events = select.POLLIN | (select.POLLOUT if sent < len(question) else 0)
                if self._await(events, self._so_far(received, owed, what)) == select.POLLOUT:
                    continue
                piece = self._recv_all(len(owed) - len(received))
                if not piece:
                    raise Failure(
                        f"{self._so_far(received, owed, what)}, then the end of the stream: the "
                        "server closed the connection, which was the client's to end"
                    )
                received += piece
                if not owed.startswith(piece, len(received) - len(piece)):
                    self._compare(received, owed, what)
        except Failure as failure:
            failure.received = bytes(received)
            failure.difference = difference(failure.received, owed) if received else None
            raise

    def _compare(self, received: bytearray, owed: bytes, what: str) -> None:
        if not owed.startswith(received) and (
            first_difference := difference(bytes(received), owed)
        ):
            raise Failure(
                f"client {self.name} got a wrong {what}: from byte {first_difference.offset:,} of "
                f"{len(owed):,} on, {first_difference.explanation}"
            )

    def _so_far(self, received: bytearray, owed: bytes, what: str) -> str:
        if not received:
            return f"client {self.name} got nothing back, no byte of the {what} ({len(owed):,})"
        return (
            f"client {self.name} got {len(received):,} of {count(len(owed), 'byte')} of the {what}"
        )

    def ends(self, seconds: float) -> bool:
        """Tell whether the server ends the stream within `seconds`.

        Raises:
            Failure: There is something before the end, or a reset instead of it.
        """
        if not self._ready(select.POLLIN, min(seconds, self.trial.left)):
            self._timeline.add(self.name, f"waited {seconds:.1f} s for the end of the stream")
            return False
        if piece := self._recv(_PIECE):
            raise Failure(
                f"client {self.name} got {count(len(piece), 'byte')} too many: {piece[:24]!r}"
            )
        return True

    def read_within(self, seconds: float, most: int = _PIECE) -> bytes:
        """Return the bytes that come within `seconds`, and at most `most` of them."""
        deadline = time.monotonic() + seconds
        received = b""
        while len(received) < most and self._ready(select.POLLIN, deadline - time.monotonic()):
            piece = self._recv(most - len(received))
            if not piece:
                break
            received += piece
        return received

    def await_readable(self) -> None:
        """Wait until there is something to read, without reading it."""
        self._await(select.POLLIN, f"client {self.name} got no reply")

    def half_close(self) -> None:
        """End the outgoing stream, and go on reading (SHUT_WR)."""
        self._timeline.add(self.name, "half-closed: sends no more, still reads")
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise Failure(f"client {self.name}'s connection is gone: {_reason(error)}") from None

    @contextmanager
    def cork(self) -> Iterator[None]:
        """Send the data of the block together, as far as it fits into a segment (tcp(7))."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        try:
            yield
        finally:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def close(self) -> None:
        """Close the socket; the kernel sends FIN if everything was read, and RST otherwise."""
        self._timeline.add(self.name, "closed")
        self.sock.close()

    def reset(self) -> None:
        """End the connection with RST."""
        self._timeline.add(self.name, "reset (RST)")
        reset(self.sock)

    def _await(self, events: int, otherwise: str) -> int:
        """Wait for events, and return those that came; fail when the patience has run out."""
        patience = max(0.0, min(self._patience, self.trial.left))
        ready = self._ready(events, patience)
        if not ready:
            self._timeline.add(self.name, f"waited {patience:.1f} s in vain")
            if patience < self._patience:
                raise Failure(f"{otherwise}; then the time for this check was over")
            raise Failure(f"{otherwise}, within {patience:.0f} s")
        return ready

    def _ready(self, events: int, seconds: float) -> int:
        poll = select.poll()
        poll.register(self.sock, events)
        events_ready = poll.poll(max(0.0, seconds) * 1000)
        return events_ready[0][1] if events_ready else 0

    def _send(self, data: memoryview) -> int:
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._timeline.add(self.name, f"cannot send: {_reason(error)}")
            raise Failure(
                f"client {self.name} could not send: {_reason(error)}; the server had ended the "
                "connection"
            ) from None
        self._timeline.add_transfer(self.name, "sent", data[:sent])
        return sent

    def _recv_all(self, most: int) -> bytes:
        """Return the bytes that are there, at most `most`; none at the end of the stream."""
        most = min(most, _MOST)
        received = bytearray(self._recv(min(most, _PIECE)))
        while received and len(received) < most and self._ready(select.POLLIN, 0):
            piece = self._recv(min(most - len(received), _PIECE))
            if not piece:  # the next call finds it again
                break
            received += piece
        return bytes(received)

    def _recv(self, size: int) -> bytes:
        try:
            piece = self.sock.recv(size)
        except BlockingIOError:  # spurious; the next wait decides
            self._await(select.POLLIN, f"client {self.name} got nothing")
            return self._recv(size)
        except OSError as error:
            self._timeline.add(self.name, f"got {_reason(error)} instead of bytes")
            raise Failure(f"client {self.name} lost the connection: {_reason(error)}") from None
        if piece:
            self._timeline.add_transfer(self.name, "received", piece)
        else:
            self._timeline.add(self.name, "received the end of the stream (FIN)")
        return piece


def reset(sock: socket.socket) -> None:
    """Close with RST instead of FIN (socket(7), SO_LINGER)."""
    reset_on_close(sock)
    sock.close()


def retransmissions(sock: socket.socket) -> int:
    """Return how many segments this end had to send again (tcp(7), TCP_INFO)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS + 4)
    return int(struct.unpack_from("I", info, _TOTAL_RETRANS)[0])


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer to the SYN"
    return error.strerror or str(error)
