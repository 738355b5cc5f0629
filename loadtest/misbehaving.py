"""An echo server that does one thing wrong, once: what a load test must notice, and name.

::

    python -m loadtest.misbehaving 9998 corrupts
    echoload run :9998 -c 5 -n 100

It reads the header of each message (`clients.content`), so that it can spoil message 3 of
connection 2, and no other.
"""

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from echoserver.system.sockets import reset_on_close

_HEADER = re.compile(rb"([0-9a-f]{4}):([0-9a-f]{8}):([0-9a-f]{6}):")
_HEADER_SIZE = 21
VICTIM = 2
MESSAGE = 3


class MisbehavingServer:
    """An echo server on 127.0.0.1 that has one fault.

    Args:
        fault: The fault, one of `FAULTS`.
        port: The port to listen on; 0: a free one.
    """

    def __init__(self, fault: str, port: int = 0) -> None:
        self._fault = FAULTS[fault]
        self._greets = fault == "greets"
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._connections = 0
        self._arrival = threading.Condition()
        self._messages: dict[int, bytes] = {}
        self.address: tuple[str, int] = self._listener.getsockname()

    def serve(self) -> None:
        """Serve until the listener is closed."""
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._connections += 1
                if self._greets and self._connections == VICTIM:
                    sock.sendall(b"220 ready\r\n")
                threading.Thread(target=self._converse, args=(sock,), daemon=True).start()

    def close(self) -> None:
        """Close the listening socket, which ends `serve`."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _converse(self, sock: socket.socket) -> None:
        pending = b""
        with sock, suppress(OSError):
            while data := sock.recv(65536):
                pending += data
                while (match := _HEADER.match(pending)) and len(pending) >= int(match[3], 16):
                    connection, number, size = (int(part, 16) for part in match.groups())
                    message, pending = pending[:size], pending[size:]
                    if (connection, number) == (VICTIM, MESSAGE) or self._is_swap_partner(
                        connection, number
                    ):
                        pending = self._fault(self, sock, message, pending)
                    else:
                        sock.sendall(message)

    def _is_swap_partner(self, connection: int, number: int) -> bool:
        return self._fault is _swap and (connection, number) == (VICTIM + 1, MESSAGE)

    def exchange(self, message: bytes) -> bytes:
        """Swap messages between two connections: each call returns the message of the other."""
        with self._arrival:
            mine = threading.get_ident()
            self._messages[mine] = message
            self._arrival.notify_all()
            self._arrival.wait_for(lambda: len(self._messages) == 2)  # noqa: PLR2004 - the two
            return next(other for who, other in self._messages.items() if who != mine)


Fault = Callable[[MisbehavingServer, socket.socket, bytes, bytes], bytes]
"""Takes a message and the bytes after it, misbehaves, and returns the bytes yet to be answered."""


def _truncate(
    _server: MisbehavingServer, sock: socket.socket, message: bytes, rest: bytes
) -> bytes:
    sock.sendall(message[:-10])
    return rest


def _cut(server: MisbehavingServer, sock: socket.socket, message: bytes, rest: bytes) -> bytes:
    sock.sendall(message[:-10])
    return _close(server, sock, message, rest)


def _corrupt(_server: MisbehavingServer, sock: socket.socket, message: bytes, rest: bytes) -> bytes:
    sock.sendall(message[:40] + bytes([message[40] ^ 0x20]) + message[41:])
    return rest


def _swap(server: MisbehavingServer, sock: socket.socket, message: bytes, rest: bytes) -> bytes:
    sock.sendall(server.exchange(message))
    return rest


def _duplicate(
    _server: MisbehavingServer, sock: socket.socket, message: bytes, rest: bytes
) -> bytes:
    sock.sendall(message * 2)
    return rest


def _reorder(_server: MisbehavingServer, sock: socket.socket, message: bytes, rest: bytes) -> bytes:
    while len(rest) < len(message):
        rest += sock.recv(65536)
    sock.sendall(rest[: len(message)] + message)
    return rest[len(message) :]


def _lose(_server: MisbehavingServer, _sock: socket.socket, _message: bytes, rest: bytes) -> bytes:
    return rest


def _reset(_server: MisbehavingServer, sock: socket.socket, _message: bytes, _rest: bytes) -> bytes:
    reset_on_close(sock)
    raise ConnectionResetError


def _stall(_server: MisbehavingServer, sock: socket.socket, _message: bytes, _rest: bytes) -> bytes:
    while sock.recv(65536):
        pass
    return b""


def _close(_server: MisbehavingServer, sock: socket.socket, _message: bytes, _rest: bytes) -> bytes:
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(65536):  # closing with unread input would send a reset
        pass
    return b""


def _behave(_server: MisbehavingServer, sock: socket.socket, message: bytes, rest: bytes) -> bytes:
    sock.sendall(message)
    return rest


FAULTS: dict[str, Fault] = {
    "behaves": _behave,
    "truncates": _truncate,
    "cuts": _cut,
    "corrupts": _corrupt,
    "swaps": _swap,
    "duplicates": _duplicate,
    "reorders": _reorder,  # needs a pipeline of two or more, or it waits forever
    "loses": _lose,
    "resets": _reset,
    "stalls": _stall,
    "greets": _behave,  # it also sends a greeting when it accepts
    "closes": _close,
}


@contextmanager
def misbehaving(fault: str) -> Iterator[tuple[str, int]]:
    """Run a server that has the fault in a thread, until the end of the block."""
    server = MisbehavingServer(fault)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server.address
    finally:
        server.close()
        thread.join()


def main() -> None:
    """Serve on the port, and with the fault, that the command line names."""
    words = sys.argv[1:]
    if len(words) != 2 or not words[0].isdigit() or words[1] not in FAULTS:  # noqa: PLR2004
        sys.exit(f"python -m loadtest.misbehaving PORT FAULT, of {', '.join(FAULTS)}")
    MisbehavingServer(words[1], int(words[0])).serve()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
