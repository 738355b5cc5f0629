"""A client's side of the wire, at the level at which things go wrong."""

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TypeVar, cast

from clients.tls import TlsSocket, Trust
from echoserver.addresses import is_unix, socket_name
from tests.support import pace

T = TypeVar("T")

Address = tuple[str, int]

# Seconds after which a reply that has not come will not come. `--patience` sets it.
patience = 10.0

# What a test opened, closed at its end whatever became of it.
opened: list[socket.socket] = []

# Where the servers of a test speak TLS: whom its clients trust.
trust: Trust | None = None

ALL_BYTES = bytes(range(256))


def connect(
    address: Address, *, source: str | None = None, receive_buffer: int | None = None
) -> socket.socket:
    """Return a connection whose waits are bounded by `patience`; the test's end closes it."""
    if is_unix(address[0]):
        local = socket.socket(socket.AF_UNIX)
        opened.append(local)
        local.settimeout(patience)
        local.connect(socket_name(address[0]))
        return secured(local)
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    opened.append(sock)
    sock.settimeout(patience)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source is not None:
        sock.bind((source, 0))
    sock.connect(address)
    return secured(sock)


def secured(sock: socket.socket) -> socket.socket:
    """Return what speaks TLS over a connection, where the test's servers do; else itself."""
    return sock if trust is None else cast("socket.socket", Secured(sock, trust))


class Secured:
    """TLS in the place of a socket, for two threads: one that sends and one that receives.

    The handshake is part of the first call that needs it.
    """

    def __init__(self, sock: socket.socket, trust: Trust) -> None:
        self.raw = sock
        self._tls = TlsSocket(sock, trust.context(), "127.0.0.1")
        self._lock = threading.Lock()
        self._timeout = sock.gettimeout()
        self._read = b""
        self._ending = False
        self.fileno, self.close = sock.fileno, sock.close
        self.setsockopt, self.getsockopt = sock.setsockopt, sock.getsockopt
        self.getsockname, self.getpeername = sock.getsockname, sock.getpeername

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def setblocking(self, blocking: bool) -> None:  # noqa: FBT001 - as of a socket
        self._timeout = None if blocking else 0.0

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        try:
            return self._insist(lambda: self._tls.send(data), flags, select.POLLOUT)
        except TimeoutError:
            # What is encrypted already is as good as sent: no other data may come in its place.
            taken, self._tls._write_size = self._tls._write_size, 0
            if not taken:
                raise
            return taken

    def sendall(self, data: bytes) -> None:
        unsent = memoryview(data)
        while unsent:
            unsent = unsent[self.send(unsent) :]

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._read:
            self._read = self._insist(lambda: self._receive(size), flags, select.POLLIN)
        data, self._read = self._read[:size], self._read[size:]
        return data

    def close_notify(self) -> None:
        """End our direction for TLS, and not for TCP."""
        self._insist(self._tls.handshake, 0, select.POLLOUT)
        self._insist(self._tls.close_notify, 0, select.POLLOUT)

    def shutdown(self, how: int) -> None:
        if how == socket.SHUT_WR:
            self._insist(self._tls.handshake, 0, select.POLLOUT)
            with self._lock:
                self._ending = True
                self._end()
        else:
            self.raw.shutdown(how)

    def _end(self) -> None:
        """Half-close; where there is no room for the close_notify, when there is."""
        with suppress(BlockingIOError):
            self._tls.close_notify()
            self.raw.shutdown(socket.SHUT_WR)
            self._ending = False

    def _receive(self, size: int) -> bytes:
        if self._ending:
            self._end()
        return self._tls.recv(size)

    def _insist(self, attempt: Callable[[], T], flags: int, event: int) -> T:
        timeout = 0.0 if flags & socket.MSG_DONTWAIT else self._timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        self.raw.setblocking(False)
        while True:
            with self._lock:
                try:
                    return attempt()
                except BlockingIOError:
                    if timeout == 0:
                        raise
                    if not self._tls.handshake_complete:
                        # While one thread waits for that, the other must not: what comes wakes
                        # one of them only.
                        self._wait(select.POLLIN, deadline)
                        continue
                    wanted = event | (select.POLLOUT if self._ending else 0)
            self._wait(wanted, deadline)

    def _wait(self, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self.raw, event)
        left = None if deadline is None else deadline - time.monotonic()
        if (left is not None and left <= 0) or not poll.poll(left and left * 1000):
            raise TimeoutError("timed out")


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Return `size` bytes, or fewer where the stream ended before."""
    pieces = bytearray()
    while len(pieces) < size and (piece := sock.recv(min(size - len(pieces), 1 << 20))):
        pieces += piece
    return bytes(pieces)


def read_to_end(sock: socket.socket) -> bytes:
    """Return everything up to the peer's FIN."""
    pieces = bytearray()
    while piece := sock.recv(1 << 20):
        pieces += piece
    return bytes(pieces)


def ask(sock: socket.socket, data: bytes) -> bytes:
    """Send `data` and return as many bytes."""
    sock.sendall(data)
    return read_exactly(sock, len(data))


def finish(sock: socket.socket) -> bytes:
    """Half-close, and return everything up to the peer's FIN."""
    sock.shutdown(socket.SHUT_WR)
    return read_to_end(sock)


def reset(sock: socket.socket) -> None:
    """Close with RST instead of FIN."""
    reset_on_close(sock)
    sock.close()


def reset_on_close(sock: socket.socket) -> None:
    """Have the end of a socket, by a call or with its process, send RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def served(address: Address) -> bool:
    """Tell whether a fresh client gets an answer, all of it, and the end."""
    try:
        with connect(address) as sock:
            return ask(sock, b"SERVED?") == b"SERVED?" and finish(sock) == b""
    except ConnectionResetError:
        return False


def send_what_is_taken(sock: socket.socket, data: bytes) -> None:
    """Send until all is sent, or the peer takes no more; for a thread of its own."""
    with suppress(OSError):
        sock.sendall(data)


def eventually(condition: Callable[[], object], seconds: float | None = None) -> bool:
    """Ask until `condition` holds; tell whether it ever did, in `seconds` of an idle machine."""
    seconds, begun = patience if seconds is None else seconds, time.monotonic()
    while not condition():
        if not pace.within(time.monotonic() - begun, seconds):
            return False
        time.sleep(0.01)
    return True


def content(size: int, seed: int = 1) -> bytes:
    """Return `size` bytes that no other seed gives."""
    return random.Random(seed).randbytes(size)


def difference(received: bytes, expected: bytes) -> str:
    """Say how two long texts differ; nothing where they do not.

    Left to compare megabytes itself, pytest computes a diff, in full where CI is set: for hours.
    """
    if received == expected:
        return ""
    pairs = enumerate(zip(received, expected, strict=False))
    shorter = min(len(received), len(expected))
    offset = next((i for i, (came, due) in pairs if came != due), shorter)
    return (
        f"{len(received)} bytes came, {len(expected)} were owed; from byte {offset}: "
        f"{received[offset : offset + 16]!r} instead of {expected[offset : offset + 16]!r}"
    )


def capitals(size: int, seed: int = 1) -> bytes:
    """Return content that the handler `upper` leaves as it is."""
    return content(size, seed).upper()


@contextmanager
def sending(sock: socket.socket, data: bytes) -> Iterator[None]:
    """Send `data` in a thread of its own while the block reads."""
    failed: list[OSError] = []

    def send() -> None:
        try:
            sock.sendall(data)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(patience)
    assert not thread.is_alive(), "the server stopped reading"
    if failed:
        raise failed[0]


def push_until_blocked(sock: socket.socket, data: bytes) -> int:
    """Send without reading until nothing more is taken for a while; return how much was."""
    sock.settimeout(0.2)
    sent = 0
    try:
        while sent < len(data):
            sent += sock.send(data[sent : sent + 65536])
    except TimeoutError:
        pass
    finally:
        sock.settimeout(patience)
    return sent
