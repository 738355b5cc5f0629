"""Backends that are wrong on purpose, one defect each: what the suite is held to account with.

Each declares in `fails` the checks that must fail, and all others must pass.
"""

import fcntl
import queue
import select
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar

from echoserver import Backend, Connection, Listener, Service
from echoserver.backends.process import ProcessBackend
from echoserver.connection import BlockingTransport, abort


class BrokenThreads(Backend):
    """A thread per client, on a transport that is wrong."""

    transport: ClassVar[type[BlockingTransport]] = BlockingTransport
    fails: ClassVar[set[str]] = set()

    def serve(self, listener: Listener, service: Service) -> None:
        for connection in listener:
            threading.Thread(target=connection.serve, args=(self.transport,), daemon=True).start()
        service.drain()


class _ReadsItsOwnWay(BlockingTransport):
    """Reads by a method of its own, `_recv`; `_read` is what it is made of."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._read = sock.recv
        self.recv = self._recv  # type: ignore[assignment]

    def _recv(self, size: int) -> bytes:
        raise NotImplementedError


# A short message may well arrive together with the FIN; whether it does is chance, and a check
# that fails by chance proves nothing.
_A_FEW_WORDS = 100


class _EndsWithTheInput(_ReadsItsOwnWay):
    """Once the peer has sent its FIN, everything is over, however much is still to be read."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLRDHUP)

    def _recv(self, size: int) -> bytes:
        for _, events in self._poll.poll(0):
            reset = events & (select.POLLERR | select.POLLHUP)
            if not reset and unread(self._sock) > _A_FEW_WORDS:
                abort(self._sock)
                return b""
        return self._read(size)


def unread(sock: socket.socket) -> int:
    """Return how much input waits to be read (tcp(7), SIOCINQ)."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


class NoHalfClose(BrokenThreads):
    """Takes the peer's FIN for the end of everything."""

    transport = _EndsWithTheInput
    fails: ClassVar[set[str]] = {
        "test_half_close_flushes_everything_then_fin[echo]",
        "test_half_close_flushes_everything_then_fin[upper]",
    }


class _SendsOnce(BlockingTransport):
    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.send = self._send  # type: ignore[assignment]

    def _send(self, data: bytes | memoryview) -> int:
        with suppress(BlockingIOError):
            self._sock.send(data, socket.MSG_DONTWAIT)
        return len(data)  # as if it had all been taken


class SendForSendall(BrokenThreads):
    """Believes that send takes everything, however little it took."""

    transport = _SendsOnce
    fails: ClassVar[set[str]] = {
        "test_sizes_from_one_byte_to_16_mib[echo]",
        "test_sizes_from_one_byte_to_16_mib[upper]",
        "test_half_close_flushes_everything_then_fin[echo]",
        "test_half_close_flushes_everything_then_fin[upper]",
        "test_64_mib_at_a_peer_that_does_not_read",
    }


class _Hoards(_ReadsItsOwnWay):
    """A writer thread has the output, all of it."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._failure: OSError | None = None
        self.send = self._send  # type: ignore[assignment]
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def _send(self, data: bytes | memoryview) -> int:
        self._unsent.put(bytes(data))
        return len(data)

    def _recv(self, size: int) -> bytes:
        data = self._read(size)
        if not data:
            self.close()
            if self._failure is not None:
                raise self._failure
        return data

    def _write(self) -> None:
        while (data := self._unsent.get()) is not None:
            try:
                self._sock.sendall(data)
            except OSError as error:
                self._failure = error

    def close(self) -> None:
        self._unsent.put(None)
        self._writer.join()


class BuffersWithoutLimit(BrokenThreads):
    """Reads on, whether or not the peer takes what it is owed."""

    transport = _Hoards
    fails: ClassVar[set[str]] = {"test_64_mib_at_a_peer_that_does_not_read"}


class _ClosesHard(_ReadsItsOwnWay):
    def _recv(self, size: int) -> bytes:
        data = self._read(size)
        if not data:
            abort(self._sock)
        return data


class DropsOutputOnClose(BrokenThreads):
    """Closes with a reset, which destroys what the kernel has not delivered."""

    transport = _ClosesHard
    fails: ClassVar[set[str]] = {
        "test_one_byte_segments[echo]",
        "test_one_byte_segments[upper]",
        "test_sizes_from_one_byte_to_16_mib[echo]",
        "test_sizes_from_one_byte_to_16_mib[upper]",
        "test_half_close_flushes_everything_then_fin[echo]",
        "test_half_close_flushes_everything_then_fin[upper]",
        "test_empty_connection",
        "test_the_end_needs_no_other_client",
        "test_rst_mid_transfer",
        "test_rst_before_accept",
        "test_peer_vanishes_mid_write",
        "test_64_mib_at_a_peer_that_does_not_read",
        "test_no_cpu_for_idle_and_dead_peers",
        "test_churn_leaves_nothing_behind",
        "test_silent_client_does_not_block_another",
        "test_no_cross_talk_among_simultaneous_senders",
        "test_400_connections_at_once",
        "test_ended_clients_are_forgotten_while_others_queue",
    }


class _Leaky:
    """Passes connections on, and keeps a copy of each socket."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._kept: list[socket.socket] = []
        self.close = listener.close

    def __iter__(self) -> Iterator[Connection]:
        for connection in self._listener:
            self._kept.append(connection.sock.dup())
            yield connection


class LeaksAcceptedSocket(ProcessBackend):
    """The parent of a fork per client keeps the client's socket: nobody sees a FIN."""

    fails: ClassVar[set[str]] = DropsOutputOnClose.fails

    def serve(self, listener: Listener, service: Service) -> None:
        super().serve(_Leaky(listener), service)  # type: ignore[arg-type]


_shared = bytearray(64 * 1024)


class _ReadsIntoTheSharedBuffer(_ReadsItsOwnWay):
    def _recv(self, size: int) -> bytes:
        count = self._sock.recv_into(_shared, size)
        time.sleep(0.001)  # as any computation would
        return bytes(_shared[:count])


class SharedBuffer(BrokenThreads):
    """All connections read into one buffer."""

    transport = _ReadsIntoTheSharedBuffer
    fails: ClassVar[set[str]] = {
        "test_interleaved_turns",
        "test_no_cross_talk_among_simultaneous_senders",
        "test_400_connections_at_once",
    }


class _Spins(_ReadsItsOwnWay):
    """The tutorial's ``if not data: continue``."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._woken = False

    def _recv(self, size: int) -> bytes:
        while not (data := self._read(size)):
            if self._woken:
                raise BlockingIOError
        return data

    def wake(self) -> None:
        self._woken = True
        super().wake()


class SpinsOnClosedPeer(BrokenThreads):
    """Reads a closed connection again and again."""

    transport = _Spins
    fails: ClassVar[set[str]] = DropsOutputOnClose.fails


class _Text(_ReadsItsOwnWay):
    def _recv(self, size: int) -> bytes:
        return self._read(size).decode("utf-8", "replace").encode("utf-8")


class DecodesText(BrokenThreads):
    """Takes each read for whole characters."""

    transport = _Text
    fails: ClassVar[set[str]] = {
        "test_all_256_byte_values[echo]",
        "test_all_256_byte_values[upper]",
        "test_split_utf8[echo]",
        "test_split_utf8[upper]",
        "test_one_byte_segments[echo]",
        "test_one_byte_segments[upper]",
        "test_sizes_from_one_byte_to_16_mib[echo]",
        "test_sizes_from_one_byte_to_16_mib[upper]",
        "test_half_close_flushes_everything_then_fin[echo]",
        "test_half_close_flushes_everything_then_fin[upper]",
        "test_64_mib_at_a_peer_that_does_not_read",
        "test_no_cross_talk_among_simultaneous_senders",
    }
