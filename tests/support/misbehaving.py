"""A server that does one thing wrong, on command, so that a client can be seen to notice."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.support import wire
from tests.support.certificates import SERVERS
from tests.support.wire import Address

# Given what a connection sent, and the connection's number, returns what to answer;
# None: end the connection instead.
Answer = Callable[[bytes, int], bytes | None]


@contextmanager
def server(answer: Answer, *, hard: bool = False) -> Iterator[Address]:
    """Serve with `answer`; `hard` ends connections with a reset instead of a FIN."""

    def converse(sock: socket.socket, number: int) -> None:
        while data := sock.recv(65536):
            reply = answer(data, number)
            if reply is None:
                if hard:
                    wire.reset_on_close(sock)
                break
            sock.sendall(reply)
        sock.close()

    with accepting(converse) as address:
        yield address


@contextmanager
def accepting(converse: Callable[[socket.socket, int], None]) -> Iterator[Address]:
    """Serve with a thread of `converse` for each client, which is told its number, from 1."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    socks: list[socket.socket] = []

    def guarded(sock: socket.socket, number: int) -> None:
        with suppress(OSError):
            converse(sock, number)

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                socks.append(sock)
                threading.Thread(target=guarded, args=(sock, len(socks)), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for sock in socks:
            sock.close()


@contextmanager
def ending_with_its_reply(answer: Callable[[bytes], bytes]) -> Iterator[Address]:
    """Serve TLS: answer once, with the close_notify in the same segment, and no FIN after it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SERVERS.issue())
    context.num_tickets = 0

    def converse(sock: socket.socket, _number: int) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while data := sock.recv(65536):
            incoming.write(data)
            with suppress(ssl.SSLError):  # it wants more; or the client has ended, too
                tls.do_handshake()
                tls.write(answer(tls.read(65536)))
                tls.unwrap()
            sock.sendall(outgoing.read())

    with accepting(converse) as address:
        yield address
