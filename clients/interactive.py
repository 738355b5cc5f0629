"""Type a line, see the reply; or pipe a stream through the server; or ping it."""

import contextlib
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clients.address import format_address, peer_address
from clients.client import CHUNK, EchoClient, has_pending
from echoserver import terminal

if TYPE_CHECKING:
    from clients.tls import Socket, Trust

_FIRST_PATIENCE = 5.0  # seconds until a reply begins
_NEXT_PATIENCE = 1.0  # seconds of silence after which a reply that is too short is taken as all
_NONCE_BYTES = 16
_STDIN, _STDOUT = 0, 1


def converse(client: EchoClient) -> int:
    """Ask at a prompt until ``q``, Ctrl-D or the server's end; return the exit code."""
    from clients.prompt import Prompt  # noqa: PLC0415 - only on a terminal

    print(f"Connected to {peer_address(client.sock)}. A line is sent as typed; q or Ctrl-D quits.")
    conversation = _Conversation(client.sock)
    try:
        with Prompt(client.sock) as prompt:
            while True:
                conversation.show_unasked()
                try:
                    line = prompt.ask("> ")
                except EOFError:
                    print()
                    return 0
                if line == "q":
                    return 0
                if line is not None:
                    conversation.exchange((line + "\n").encode("utf-8", "surrogateescape"))
    except _Ended:
        print("The server closed the connection.")
    except OSError as error:
        print(f"The connection was broken: {error.strerror or error}.")
    return 1


class _Ended(Exception):  # noqa: N818 - it is not an error
    """The server closed the connection."""


class _Conversation:
    """What is sent and shown: replies, and apart from them what comes late or is not owed."""

    def __init__(self, sock: "Socket") -> None:
        self._sock = sock
        self._owed = 0

    def show_unasked(self) -> None:
        """Show what has come since the last reply.

        Raises:
            OSError: The connection was broken.
            _Ended: The server closed it.
        """
        if data := self._arrived():
            self._show_apart(data)

    def exchange(self, message: bytes) -> None:
        """Send a message, and show the reply.

        Raises:
            OSError: The connection was broken.
            _Ended: The server closed it.
        """
        if self._owed:  # first what is late, lest it be taken for the next reply
            late, ended = _reply(self._sock, self._owed)
            self._show_apart(late)
            if ended:
                raise _Ended
        self._sock.sendall(message)
        self._owed += len(message)
        reply, ended = _reply(self._sock, self._owed)
        if not ended:
            # What is more than was sent has mostly come by now.
            with contextlib.suppress(_Ended, ConnectionError):
                reply += self._arrived()
        # Where the message itself has come back, what stands before it is not its echo.
        before, found, after = reply.partition(message)
        if found:
            self._owed -= len(message)
            self._show_apart(before)
            print(_shown(found))
            self._show_apart(after)
        else:
            if reply or not ended:
                print(_shown(reply[: self._owed]))
            reply, more = reply[: self._owed], reply[self._owed :]
            self._owed -= len(reply)
            self._show_apart(more)
        if ended:
            raise _Ended
        if self._owed:
            print(f"(The server still owes {self._owed} bytes.)")

    def _show_apart(self, data: bytes) -> None:
        late, more = data[: self._owed], data[self._owed :]
        self._owed -= len(late)
        for what, said in ((late, "late"), (more, "not owed")):
            if what:
                print(f"({said}) {_shown(what)}")

    def _arrived(self) -> bytes:
        """Return what has come, without waiting for it."""
        self._sock.settimeout(0.0)
        arrived = b""
        try:
            while not arrived or has_pending(self._sock):
                if not (data := self._sock.recv(CHUNK)):
                    break
                arrived += data
        except BlockingIOError:
            return arrived
        if not arrived:
            raise _Ended
        return arrived


def _reply(sock: "Socket", size: int) -> tuple[bytes, bool]:
    """Return a reply of `size` bytes, or what there is of it, and whether the server closed."""
    reply = bytearray()
    sock.settimeout(_FIRST_PATIENCE)
    while len(reply) < size:
        try:
            piece = sock.recv(size - len(reply))
        except TimeoutError:
            return bytes(reply), False
        if not piece:
            return bytes(reply), True
        reply += piece
        sock.settimeout(_NEXT_PATIENCE)
    return bytes(reply), False


def _shown(reply: bytes) -> str:
    return printable(reply.removesuffix(b"\n"))


def printable(data: bytes) -> str:
    """Decode UTF-8 for the terminal; what is not text, or would command it, is escaped."""
    return terminal.printable(data.decode("utf-8", "backslashreplace"), keep="\t\n")


def pipe(client: EchoClient) -> int:
    """Send standard input, half-close, write everything that comes back; return the exit code."""
    replies = _pumped(client.sock)
    while True:
        try:
            data = next(replies, None)
        except (ConnectionError, TimeoutError) as error:
            reason = error.strerror or error
            print(f"echoclient: the connection was broken: {reason}", file=sys.stderr)
            return 1
        if data is None:
            return 0
        _write_all(data)


def _pumped(sock: "Socket") -> Iterator[bytes]:
    """Send standard input and yield what comes, at the same time, in one thread, as TLS needs."""
    sock.setblocking(False)
    unsent = memoryview(b"")
    more, half_closed = True, False
    while True:
        poll = select.poll()
        sending = unsent or not (more or half_closed)
        poll.register(sock, select.POLLIN | (select.POLLOUT if sending else 0))
        if more and not unsent:
            poll.register(_STDIN, select.POLLIN)
        pending = has_pending(sock)
        ready = dict(poll.poll(0 if pending else None))
        if pending:
            ready[sock.fileno()] = ready.get(sock.fileno(), 0) | select.POLLIN
        for fd, events in ready.items():
            if fd == _STDIN:
                unsent = memoryview(os.read(_STDIN, CHUNK))
                more = bool(unsent)
                continue
            with contextlib.suppress(BlockingIOError):
                if events & select.POLLOUT and unsent:
                    unsent = unsent[sock.send(unsent) :]
                elif events & select.POLLOUT:
                    sock.shutdown(socket.SHUT_WR)
                    half_closed = True
            with contextlib.suppress(BlockingIOError):
                if events & ~select.POLLOUT:
                    if not (data := sock.recv(CHUNK)):
                        return
                    yield data


def _write_all(data: bytes) -> None:
    unwritten = memoryview(data)
    while unwritten:
        try:
            unwritten = unwritten[os.write(_STDOUT, unwritten) :]
        except BlockingIOError:
            select.select([], [_STDOUT], [])


def ping(
    host: str, port: int, timeout: float, trust: "Trust | None" = None, preface: bytes = b""
) -> int:
    """Send a nonce, verify what comes back, print the round-trip time; return 0 or 1."""
    where = format_address(host, port)
    # Digits and capitals: the handler `upper` leaves them as they are.
    nonce = secrets.token_hex(_NONCE_BYTES).upper().encode("ascii")
    try:
        with EchoClient(host, port, timeout, trust, preface) as client:
            begun = time.perf_counter()
            reply = client.echo(nonce)
            milliseconds = (time.perf_counter() - begun) * 1000
    except OSError as error:
        from clients.tls import explain  # noqa: PLC0415 - ssl is large

        print(f"echoclient: {where} {explain(error)}", file=sys.stderr)
        return 1
    if reply != nonce:
        print(
            f"echoclient: {where} is not an echo server: it answered {printable(reply)!r} "
            f"to {nonce.decode()!r}",
            file=sys.stderr,
        )
        return 1
    print(f"{where} answered in {milliseconds:.3f} ms")
    return 0
