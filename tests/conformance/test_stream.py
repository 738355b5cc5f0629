"""Bytes go in, the same bytes come out: whatever they are, however they are cut."""

import select
from collections.abc import Callable

import pytest

from tests.conftest import HANDLERS, StartServer
from tests.support import wire

MIB = 1 << 20
EVERY_HANDLER = True  # also in the default tests


@pytest.fixture
def answer(handler: str) -> Callable[[bytes], bytes]:
    return HANDLERS[handler]


@pytest.fixture
def address(start: StartServer, handler: str) -> wire.Address:
    return start(handler=handler).address


@pytest.mark.core
def test_all_256_byte_values(address: wire.Address, answer: Callable[[bytes], bytes]) -> None:
    data = wire.ALL_BYTES + b"\r\n\0" + wire.ALL_BYTES[::-1]
    with wire.connect(address) as sock:
        assert wire.ask(sock, data) == answer(data)


def test_split_utf8(address: wire.Address, answer: Callable[[bytes], bytes]) -> None:
    data = "aé€😀ß".encode()
    with wire.connect(address) as sock:
        for cut in range(1, len(data)):  # every cut, those inside a character too
            assert wire.ask(sock, data[:cut]) + wire.ask(sock, data[cut:]) == answer(data)


def test_no_newline_needed(address: wire.Address, answer: Callable[[bytes], bytes]) -> None:
    with wire.connect(address) as sock:
        assert wire.ask(sock, b"no newline") == answer(b"no newline")


def test_silence_before_and_after_the_echo(
    address: wire.Address, answer: Callable[[bytes], bytes]
) -> None:
    with wire.connect(address) as sock:
        assert not select.select([sock], [], [], 0.1)[0], "a greeting nobody asked for"
        assert wire.ask(sock, b"ping") == answer(b"ping")
        assert not select.select([sock], [], [], 0.1)[0], "more than was sent"


def test_one_byte_segments(address: wire.Address, answer: Callable[[bytes], bytes]) -> None:
    data = wire.content(300)
    with wire.connect(address) as sock:
        for value in data:
            sock.sendall(bytes([value]))
        assert not wire.difference(wire.read_exactly(sock, len(data)), answer(data))
        assert wire.finish(sock) == b""


def test_thousand_messages_before_the_first_read(
    address: wire.Address, answer: Callable[[bytes], bytes]
) -> None:
    messages = [b"message %d of a thousand\n" % number for number in range(1000)]
    with wire.connect(address) as sock:
        for message in messages:
            sock.sendall(message)
        data = b"".join(messages)
        assert not wire.difference(wire.read_exactly(sock, len(data)), answer(data))


@pytest.mark.core
def test_sizes_from_one_byte_to_16_mib(
    address: wire.Address, answer: Callable[[bytes], bytes]
) -> None:
    sizes = [1, 2, 1023, 1024, 1025, 65535, 65536, 65537, MIB]
    with wire.connect(address, receive_buffer=65536) as sock:
        for size in sizes:
            data = wire.content(size, seed=size)
            with wire.sending(sock, data):
                assert not wire.difference(wire.read_exactly(sock, size), answer(data))
        data = wire.content(16 * MIB)
        sent = wire.push_until_blocked(sock, data)  # every buffer is full before the first read
        with wire.sending(sock, data[sent:]):
            assert not wire.difference(wire.read_exactly(sock, len(data)), answer(data))
        assert wire.finish(sock) == b""


@pytest.mark.core
def test_half_close_flushes_everything_then_fin(
    address: wire.Address, answer: Callable[[bytes], bytes]
) -> None:
    data = wire.content(16 * MIB)
    with wire.connect(address, receive_buffer=16384) as sock:  # slower than any server
        sent = wire.push_until_blocked(sock, data)
        assert not wire.difference(wire.finish(sock), answer(data[:sent]))
