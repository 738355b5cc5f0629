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
from typing import Any, ClassVar

from echoserver import Backend, Connection, Listener, Service
from echoserver.backends.process import ProcessBackend
from echoserver.system.sockets import reset_on_close


class Wrong:
    """A socket that does one thing wrong."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class BrokenThreads(Backend):
    """A thread per client, on a socket that is wrong."""

    socket: ClassVar[type[Wrong]] = Wrong
    fails: ClassVar[set[str]] = set()
    may_fail: ClassVar[set[str]] = set()
    """Checks in which the defect shows by chance."""

    def serve(self, listener: Listener, service: Service) -> None:
        for connection in listener:
            connection.sock = self.socket(connection.sock)  # type: ignore[assignment]
            threading.Thread(target=connection.serve, daemon=True).start()
        service.drain()


# A short message may well arrive together with the FIN; whether it does is chance, and a check
# that fails by chance proves nothing.
_A_FEW_WORDS = 100


class _EndsWithTheInput(Wrong):
    """Once the peer has sent its FIN, everything is over, however much is still to be read."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLRDHUP)

    def recv(self, size: int, flags: int = 0) -> bytes:
        for _, events in self._poll.poll(0):
            reset = events & (select.POLLERR | select.POLLHUP)
            if not reset and unread(self._sock) > _A_FEW_WORDS:
                reset_on_close(self._sock)
                return b""
        return self._sock.recv(size, flags)


def unread(sock: socket.socket) -> int:
    """Return how much input waits to be read (tcp(7), SIOCINQ)."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


class NoHalfClose(BrokenThreads):
    """Takes the peer's FIN for the end of everything."""

    socket = _EndsWithTheInput
    fails: ClassVar[set[str]] = {
        "test_half_close_flushes_everything_then_fin[echo]",
        "test_half_close_flushes_everything_then_fin[upper]",
    }


class _SendsOnce(Wrong):
    def send(self, data: bytes | memoryview) -> int:
        with suppress(BlockingIOError):
            self._sock.send(data, socket.MSG_DONTWAIT)
        return len(data)  # as if it had all been taken


class SendForSendall(BrokenThreads):
    """Believes that send takes everything, however little it took."""

    socket = _SendsOnce
    fails: ClassVar[set[str]] = {
        "test_sizes_from_one_byte_to_16_mib[echo]",
        "test_sizes_from_one_byte_to_16_mib[upper]",
        "test_half_close_flushes_everything_then_fin[echo]",
        "test_half_close_flushes_everything_then_fin[upper]",
        "test_64_mib_at_a_peer_that_does_not_read",
    }


class _Hoards(Wrong):
    """A writer thread has the output, all of it."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._failure: OSError | None = None
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def send(self, data: bytes | memoryview) -> int:
        self._unsent.put(bytes(data))
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = self._sock.recv(size, flags)
        if not data:
            self._finish()
            if self._failure is not None:
                raise self._failure
        return data

    def _write(self) -> None:
        while (data := self._unsent.get()) is not None:
            try:
                self._sock.sendall(data)
            except OSError as error:
                self._failure = error

    def _finish(self) -> None:
        self._unsent.put(None)
        self._writer.join()

    def shutdown(self, how: int) -> None:
        self._finish()
        self._sock.shutdown(how)

    def close(self) -> None:
        self._finish()
        self._sock.close()


class BuffersWithoutLimit(BrokenThreads):
    """Reads on, whether or not the peer takes what it is owed."""

    socket = _Hoards
    fails: ClassVar[set[str]] = {"test_64_mib_at_a_peer_that_does_not_read"}


class _ClosesHard(Wrong):
    def recv(self, size: int, flags: int = 0) -> bytes:
        data = self._sock.recv(size, flags)
        if not data:
            reset_on_close(self._sock)
        return data


class DropsOutputOnClose(BrokenThreads):
    """Closes with a reset, which destroys what the kernel has not delivered."""

    socket = _ClosesHard
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

    def __iter__(self) -> Iterator[Connection]:
        for connection in self._listener:
            self._kept.append(connection.sock.dup())
            yield connection


class LeaksAcceptedSocket(ProcessBackend):
    """The parent of a fork per client keeps the client's socket: nobody sees a FIN."""

    fails: ClassVar[set[str]] = DropsOutputOnClose.fails
    may_fail: ClassVar[set[str]] = set()

    def serve(self, listener: Listener, service: Service) -> None:
        super().serve(_Leaky(listener), service)  # type: ignore[arg-type]


_shared = bytearray(64 * 1024)


class _ReadsIntoTheSharedBuffer(Wrong):
    def recv(self, size: int, flags: int = 0) -> bytes:
        count = self._sock.recv_into(_shared, size, flags)
        time.sleep(0.001)  # as any computation would
        return bytes(_shared[:count])


class SharedBuffer(BrokenThreads):
    """All connections read into one buffer."""

    socket = _ReadsIntoTheSharedBuffer
    fails: ClassVar[set[str]] = {
        "test_interleaved_turns",
        "test_no_cross_talk_among_simultaneous_senders",
        "test_400_connections_at_once",
    }
    # One connection is asked while another's last read may still lie in the buffer.
    may_fail: ClassVar[set[str]] = {"test_64_mib_at_a_peer_that_does_not_read"}


class _Spins(Wrong):
    """The tutorial's ``if not data: continue``."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        while not (data := self._sock.recv(size, flags)):
            pass
        return data


class SpinsOnClosedPeer(BrokenThreads):
    """Reads a closed connection again and again."""

    socket = _Spins
    fails: ClassVar[set[str]] = DropsOutputOnClose.fails


class _Text(Wrong):
    def recv(self, size: int, flags: int = 0) -> bytes:
        return self._sock.recv(size, flags).decode("utf-8", "replace").encode("utf-8")


class DecodesText(BrokenThreads):
    """Takes each read for whole characters."""

    socket = _Text
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
