"""TLS records that arrive together: the socket is readable once, and everything is noticed."""

import itertools
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

import pytest

from clients.tls import Trust
from tests.conftest import StartServer
from tests.support import wire
from tests.support.certificates import SERVERS

_RECORD_HEAD = 5  # bytes (RFC 8446, section 5.1)


class Segments:
    """A TLS client that decides which records go into one segment."""

    def __init__(self, address: wire.Address) -> None:
        self.sock = socket.create_connection(address, wire.patience)
        wire.opened.append(self.sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = Trust(SERVERS.cert).context()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        while not self._shaken():
            self.send()
            self._incoming.write(self.sock.recv(65536))

    def _shaken(self) -> bool:
        """Tell whether the handshake is over; its last message is still to be sent."""
        with suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            return True
        return False

    def record(self, data: bytes) -> None:
        """Add a record with `data`."""
        self._tls.write(data)

    def broken_record(self) -> None:
        """Add a record that the server cannot decrypt."""
        before = self._outgoing.read()
        self._tls.write(b"WRONG")
        record = self._outgoing.read()
        self._outgoing.write(before + record[:_RECORD_HEAD] + record[:_RECORD_HEAD:-1] + b"!")

    def close_notify(self) -> None:
        """Add the end of our direction."""
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()

    def take(self) -> bytes:
        """Return all that was added, to be sent by other means."""
        return self._outgoing.read()

    def send(self) -> None:
        """Send all that was added, in one call."""
        self.sock.sendall(self.take())

    def read_to_end(self) -> bytes:
        """Return what the server answers up to the end of its stream."""
        pieces = []
        while True:
            try:
                if not (piece := self._tls.read(65536)):
                    break
                pieces.append(piece)
            except ssl.SSLWantReadError:
                if not (came := self.sock.recv(65536)):
                    break
                self._incoming.write(came)
            except ssl.SSLZeroReturnError:
                break
            except ssl.SSLError as error:  # the alert: a record could not be decrypted
                assert "ALERT" in str(error.reason)  # noqa: PT017 - the end, in one of its forms
                break
        return b"".join(pieces)


def one_record_and_the_end(client: Segments) -> bytes:
    client.record(b"HELLO")
    client.close_notify()
    return b"HELLO"


def nothing_but_the_end(client: Segments) -> bytes:
    client.close_notify()
    return b""


def records_and_the_end(client: Segments) -> bytes:
    data = wire.capitals(256)
    for value in data:
        client.record(bytes([value]))
    client.close_notify()
    return data


def large_records_and_the_end(client: Segments) -> bytes:
    data = wire.capitals(100_000)
    client.record(data)
    client.close_notify()
    return data


def a_record_before_a_broken_one(client: Segments) -> bytes:
    client.record(b"HELLO")
    client.broken_record()
    return b"HELLO"


@pytest.mark.core
@pytest.mark.secure
def test_what_comes_together_is_all_noticed(start: StartServer) -> None:
    """A ``Write``, ``CloseWrite``, ``ReadAll`` of Go's crypto/tls sends one segment."""
    server = start()
    scripts: list[Callable[[Segments], bytes]] = [
        one_record_and_the_end,
        nothing_but_the_end,
        records_and_the_end,
        large_records_and_the_end,
        a_record_before_a_broken_one,
    ]
    for script, after_handshake in itertools.product(scripts, (False, True)):
        client = Segments(server.address)
        if after_handshake:  # or its last message is in the same segment
            client.send()
        owed = script(client)
        client.send()
        assert not wire.difference(client.read_to_end(), owed), script.__name__
        client.sock.close()
    assert server.stop() == 0
    assert server.stopped is not None
    assert server.stopped["tls_failures"] == 2  # the broken records


@pytest.mark.core
@pytest.mark.secure
def test_records_without_end_leave_others_their_turn(
    start: StartServer, room: Callable[[int], int]
) -> None:
    if room(2) < 2:
        pytest.skip("it serves one client at a time")
    server = start()
    busy, other = Segments(server.address), Segments(server.address)
    for _ in range(20_000):
        busy.record(b"X")
    busy.close_notify()
    with wire.sending(busy.sock, busy.take()):
        other.record(b"HELLO")
        other.close_notify()
        other.send()
        assert other.read_to_end() == b"HELLO"
        assert busy.read_to_end() == b"X" * 20_000
