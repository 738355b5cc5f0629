"""A greenlet per client: cooperative threads on one event loop (gevent, on libev).

The code is that of a thread per client; where a thread would block in the kernel, a greenlet
parks itself with the loop and another one runs. A switch costs well under a microsecond and a
connection a few KiB, so ten thousand of them are no trouble. But there is one thread: a greenlet
that computes stops every other one.

Nothing is monkey-patched: the program around this file keeps its blocking sockets.
"""

import socket
from typing import Any, ClassVar

import gevent
import gevent.hub
import gevent.select
import gevent.socket
from greenlet import getcurrent

from echoserver.backends import Backend
from echoserver.connection import WRITE_TIMEOUT_PARTS
from echoserver.listener import Listener
from echoserver.service import Service

_READ = 1  # libev's EV_READ


class GeventBackend(Backend):
    """Spawns a greenlet for every client."""

    summary = "a greenlet per client, on one event loop (gevent)"
    poll: ClassVar[Any] = gevent.select.poll

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept in this greenlet, serve each client in one of its own."""
        transports: set[GreenTransport] = set()
        if service.config.idle_timeout:
            gevent.spawn(_sweep, transports, service.config.idle_timeout)

        def transport(sock: socket.socket) -> GreenTransport:
            return GreenTransport(sock, transports, service.config.write_timeout)

        for connection in listener:
            gevent.spawn(connection.serve, transport)
        service.drain()


class GreenTransport:
    """The blocking calls of a connection, made to park the greenlet instead of the thread.

    The read watcher is started once and stays: gevent's own sockets start and stop one for every
    wait. And the wait comes before ``recv``: the next request has hardly ever arrived by the time
    the reply is sent, so trying first would waste a system call.

    At any time, its greenlet is either parked in `recv` (`_parked` is that greenlet), or busy.
    Input that comes while it is busy would make the watcher fire for ever; so the first time that
    it fires in vain it is paused, and `recv` starts it again.
    """

    blocks_thread = False

    def __init__(
        self, sock: socket.socket, siblings: "set[GreenTransport]", write_timeout: float
    ) -> None:
        sock.setblocking(False)
        self.sleep = gevent.sleep
        self._quiet_sweeps = 0
        self._sock = sock
        self._siblings = siblings
        self._send_timeout = write_timeout / WRITE_TIMEOUT_PARTS or None
        self._hub = gevent.hub.get_hub()
        self._parked: Any = None
        self._interrupted = False
        self._watcher = self._hub.loop.io(sock.fileno(), _READ)
        self._watcher.start(self._resume)
        self._watching = True
        siblings.add(self)

    def recv(self, size: int) -> bytes:
        """Wait until there is input, and read it."""
        self._quiet_sweeps = 0
        while True:
            if self._interrupted:
                self._interrupted = False
                raise BlockingIOError
            if not self._watching:
                self._watcher.start(self._resume)
                self._watching = True
            self._parked = getcurrent()
            try:
                self._hub.switch()
            finally:
                self._parked = None
            if not self._interrupted:
                try:
                    return self._sock.recv(size)
                except BlockingIOError:  # readable, but a bad checksum: select(2), BUGS
                    continue

    def send(self, data: bytes | memoryview) -> int:
        """Send what the kernel takes; wait for room only where it takes nothing."""
        while True:
            try:
                return self._sock.send(data)
            except BlockingIOError:
                gevent.socket.wait_write(self._sock.fileno(), self._send_timeout, BlockingIOError())

    def recv_within(self, size: int, seconds: float) -> bytes:
        """Wait for input for at most `seconds`, and read it."""
        self._pause()
        gevent.socket.wait_read(self._sock.fileno(), seconds, BlockingIOError())
        return self._sock.recv(size)

    def wake(self) -> None:
        """End a `recv`, or the next one, without input."""
        self._interrupted = True
        if self._parked is not None:
            self._hub.loop.run_callback(self._resume)

    def count_sweep(self, patience: int) -> None:
        """Wake it, as if it had timed out, if it has waited for more than `patience` sweeps."""
        if self._parked is not None:
            self._quiet_sweeps += 1
            if self._quiet_sweeps > patience:
                self.wake()

    def close(self) -> None:
        """Give the watcher back to the loop."""
        self._siblings.discard(self)
        self._pause()
        self._watcher.close()

    def _resume(self) -> None:
        """Let the greenlet go on: input came, or someone wants its wait to end. Runs in the hub."""
        if self._parked is not None:
            self._parked.switch()
        elif self._watching:  # busy with its last input: until it asks for more, be quiet
            self._pause()

    def _pause(self) -> None:
        self._watcher.stop()
        self._watching = False


def _sweep(transports: set[GreenTransport], idle_timeout: float) -> None:
    """End the wait of those that were silent too long, to within an eighth of the timeout.

    One timer for all instead of one per wait: a message costs no timer at all.
    """
    sweeps = 8
    while True:
        gevent.sleep(idle_timeout / sweeps)
        for transport in transports:
            transport.count_sweep(sweeps)
