"""Servers with one defect each: what the matrix is held to account with. No good example."""

import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from echoserver import Backend, Connection, Handler, Listener, Service
from echoserver.addresses import parse_endpoint
from echoserver.backends.process import ProcessBackend
from echoserver.backends.thread import ThreadBackend
from echoserver.outcome import Outcome
from echoserver.system.sockets import reset_on_close
from tests.broken.backends import NoHalfClose as _NoHalfClose
from tests.broken.backends import SpinsOnClosedPeer as _SpinsOnClosedPeer

NoHalfClose = _NoHalfClose
Spins = _SpinsOnClosedPeer


class Raises(Handler):
    """Echoes, but for what it cannot stand."""

    def receive(self, data: bytes) -> bytes:
        if data.startswith(b"raise"):
            raise ValueError(data)
        return data


class _Own(Backend):
    """A thread for each client, which does all by itself."""

    def serve(self, listener: Listener, service: Service) -> None:
        self.service = service
        for connection in listener:
            threading.Thread(target=self._live, args=(connection,), daemon=True).start()
        self.drain()

    def drain(self) -> None:
        self.service.drain()

    def _live(self, connection: Connection) -> None:
        connection.sock.setblocking(True)
        secure = self.service.secure
        stream: Any = secure(connection.sock) if secure else connection.sock
        try:
            self.converse(connection, stream)
        except OSError:
            self.broken(connection)
        connection.release()

    def converse(self, connection: Connection, stream: Any) -> None:
        while data := stream.recv(65536):
            connection.bytes_in += len(data)
            self.answer(connection, stream, data)

    def answer(self, connection: Connection, stream: Any, data: bytes) -> None:
        connection.bytes_out += len(data)
        stream.sendall(data)

    def broken(self, connection: Connection) -> None:
        connection.outcome = Outcome.RESET


class WallClock(_Own):
    """Silence is measured by a clock that can be set."""

    def converse(self, connection: Connection, stream: Any) -> None:
        heard = time.time()
        while time.time() - heard < 300:
            if select.select([connection.sock], [], [], 0.1)[0]:
                if not (data := stream.recv(65536)):
                    return
                heard = time.time()
                self.answer(connection, stream, data)


class DiesOfReset(_Own):
    """One client's reset is everybody's end."""

    def broken(self, connection: Connection) -> None:
        os._exit(1)


class WaitsForEver(_Own):
    """No timeout is heeded, neither the kernel's nor the drain's."""

    def converse(self, connection: Connection, stream: Any) -> None:
        connection.sock.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.sock.setsockopt(socket.SOL_SOCKET, option, bytes(16))
        super().converse(connection, stream)

    def drain(self) -> None:
        threading.Event().wait(60)


class Impatient(_Own):
    """A client that takes half a second is too slow."""

    def converse(self, connection: Connection, stream: Any) -> None:
        while select.select([connection.sock], [], [], 0.5)[0] and (data := stream.recv(65536)):
            self.answer(connection, stream, data)


class StallsWhenFull(_Own):
    """When every slot is taken, it waits for one, and does nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0

    def converse(self, connection: Connection, stream: Any) -> None:
        self._open += 1
        while data := stream.recv(65536):
            while self._open >= self.service.limit - 1:
                time.sleep(0.1)
            self.answer(connection, stream, data)
        self._open -= 1


class LeaksConnections(_Own):
    """What is closed stays open."""

    kept: list[Any] = []  # noqa: RUF012 - it leaks

    def converse(self, connection: Connection, stream: Any) -> None:
        super().converse(connection, stream)
        stream.shutdown(socket.SHUT_WR)
        self.kept.append(connection.sock.dup())


class OneRecvOneReply(_Own):
    """A piece that is too short is taken for noise."""

    def answer(self, connection: Connection, stream: Any, data: bytes) -> None:
        if len(data) > 1 or connection.bytes_out == 0:
            super().answer(connection, stream, data)


class KeepsAll(_Own):
    """Everything is kept, in case somebody asks."""

    kept: list[bytes] = []  # noqa: RUF012 - it leaks

    def answer(self, connection: Connection, stream: Any, data: bytes) -> None:
        self.kept.append(data)
        super().answer(connection, stream, data)


class ClosesHard(_Own):
    """It closes with input unread, which the kernel makes a reset of."""

    def converse(self, connection: Connection, stream: Any) -> None:
        total = 0
        connection.sock.settimeout(0.5)
        with suppress(TimeoutError):
            while (
                total < 1 << 16 and self.service.lifecycle.running and (data := stream.recv(4096))
            ):
                total += len(data)
                connection.bytes_in += len(data)
                self.answer(connection, stream, data)
        reset_on_close(connection.sock)


class EndsAtUrgent(_Own):
    """Urgent data is the end of everything."""

    def converse(self, connection: Connection, stream: Any) -> None:
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN | select.POLLPRI)
        while True:
            if any(events & select.POLLPRI for _, events in poll.poll()):
                return
            if not (data := stream.recv(65536)):
                return
            self.answer(connection, stream, data)


class DiesWhenStopped(_Own):
    """It takes a SIGCONT for the end."""

    def serve(self, listener: Listener, service: Service) -> None:
        signal.signal(signal.SIGCONT, lambda _number, _frame: os._exit(1))
        super().serve(listener, service)


class SpinsWithoutDescriptors(ThreadBackend):
    """It tries again at once, and says so each time."""

    def serve(self, listener: Listener, service: Service) -> None:
        def insist(error: OSError) -> None:
            service.log.warning("accept_paused", error=error.strerror)

        listener._acceptor._back_off = insist  # type: ignore[method-assign]
        super().serve(listener, service)


class DiesWithoutThreads(ThreadBackend):
    """No thread for a client is no reason to live."""

    def serve(self, listener: Listener, service: Service) -> None:
        for connection in listener:
            try:
                threading.Thread(target=connection.serve, daemon=True).start()
            except RuntimeError:
                os._exit(1)
        service.drain()


class NeverComesBack(ThreadBackend):
    """Its master looks after nobody any more, once all have begun to serve."""

    def serve(self, listener: Listener, service: Service) -> None:
        later = threading.Timer(0.15, os.kill, (os.getppid(), signal.SIGSTOP))
        later.daemon = True
        later.start()
        super().serve(listener, service)


class DiesOfHandler(_Own):
    """What a handler raises ends the process."""

    def answer(self, connection: Connection, stream: Any, data: bytes) -> None:
        try:
            data = bytes(self.service.make_handler().receive(data))  # type: ignore[arg-type]
        except ValueError:
            os._exit(1)
        super().answer(connection, stream, data)


class IgnoresTheSecond(_Own):
    """A signal is as good as two."""

    def drain(self) -> None:
        threading.Event().wait(60)


class IgnoresTheFirst(ThreadBackend):
    """Ctrl-C is for others."""

    def serve(self, listener: Listener, service: Service) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().serve(listener, service)


class StopsListeningOnHangup(ThreadBackend):
    """To read its configuration it closes, and leaves."""

    def serve(self, listener: Listener, service: Service) -> None:
        def leave(_hook: object) -> None:
            signal.signal(signal.SIGHUP, lambda _number, _frame: os._exit(1))

        service.lifecycle.on_hangup = leave  # type: ignore[method-assign, assignment]
        super().serve(listener, service)


class DiesOfReload(ThreadBackend):
    """A configuration that is not valid ends it."""

    def serve(self, listener: Listener, service: Service) -> None:
        service.lifecycle.on_hangup(lambda: os._exit(2))
        super().serve(listener, service)


class LeavesOrphans(ProcessBackend):
    """A child that outlives everybody."""

    def serve(self, listener: Listener, service: Service) -> None:
        if not os.fork():
            os.closerange(3, 1000)
            time.sleep(60)
            os._exit(0)
        super().serve(listener, service)


class NeedsItsMetrics(ThreadBackend):
    """Without monitoring there is no service."""

    def serve(self, listener: Listener, service: Service) -> None:
        with socket.create_connection(parse_endpoint(service.config.metrics or ""), 1) as sock:
            sock.settimeout(1)
            sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            if not sock.recv(1):
                raise ConnectionError
        super().serve(listener, service)


class Crashes(Backend):
    """It fails as soon as it serves."""

    def serve(self, listener: Listener, service: Service) -> None:
        raise RuntimeError("no luck")


class Shouts(_Own):
    """It writes to stderr, and waits until somebody reads."""

    def converse(self, connection: Connection, stream: Any) -> None:
        os.write(2, b"somebody is here\n" * 100)
        super().converse(connection, stream)


class LogsContent(_Own):
    """It tells what it is told."""

    def answer(self, connection: Connection, stream: Any, data: bytes) -> None:
        sys.stderr.write(f"got {data.decode(errors='replace')}\n")
        sys.stderr.flush()
        if data.startswith(b"raise"):
            raise OSError
        super().answer(connection, stream, data)


class ShakesHandsInAccept(_Own):
    """The handshake is done where clients are accepted, and each waits for the one before."""

    def serve(self, listener: Listener, service: Service) -> None:
        self.service = service
        assert service.secure is not None
        for connection in listener:
            connection.sock.setblocking(True)
            stream = service.secure(connection.sock)
            with suppress(OSError):
                stream.handshake()
            threading.Thread(target=self._talk, args=(connection, stream), daemon=True).start()
        service.drain()

    def _talk(self, connection: Connection, stream: Any) -> None:
        with suppress(OSError):
            self.converse(connection, stream)
            stream.shutdown(socket.SHUT_WR)
        connection.release()
