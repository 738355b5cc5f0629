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
from clients.client import CHUNK, EchoClient

if TYPE_CHECKING:
    from clients.tls import Socket, Trust

_FIRST_PATIENCE = 5.0  # seconds until a reply begins
_NEXT_PATIENCE = 1.0  # seconds of silence after which a reply that is too short is taken as all
_NONCE_BYTES = 16
_STDIN, _STDOUT = 0, 1


def converse(client: EchoClient) -> int:
    """Ask at a prompt until ``q``, Ctrl-D or the server's end; return the exit code."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() line editing and history
    print(f"Connected to {peer_address(client.sock)}. A line is sent as typed; q or Ctrl-D quits.")
    owed = 0
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return 0
        if line == "q":
            return 0
        message = (line + "\n").encode("utf-8", "surrogateescape")
        try:
            if owed:  # first what is late, lest it be taken for the next reply
                late, _ = _reply(client.sock, owed)
                owed -= len(late)
                if late:
                    print(f"(late) {_shown(late)}")
            client.sock.sendall(message)
            reply, ended = _reply(client.sock, owed + len(message))
        except OSError as error:
            print(f"The connection was broken: {error.strerror or error}.")
            return 1
        if reply or not ended:
            print(_shown(reply))
        if ended:
            print("The server closed the connection.")
            return 1
        owed += len(message) - len(reply)
        if owed:
            print(f"(The server still owes {owed} bytes.)")


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
    text = data.decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() or c in "\t\n" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


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
        for fd, events in poll.poll():
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
        from clients.tls import explain

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
