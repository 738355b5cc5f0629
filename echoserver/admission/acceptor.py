"""accept(2), from all listening sockets in turn; its errors, and the pauses that they call for."""

import errno
import socket
import time
from collections import deque

from echoserver.admission.listening_sockets import ListeningSocket, ListeningSockets, set_timeouts
from echoserver.service import Service
from echoserver.system.sockets import canonical_host

AcceptedClient = tuple[socket.socket, tuple[str, int]]
"""A client's socket and its address."""

# Out of descriptors or memory: accept(2) leaves the client in the queue, so waiting loses nothing.
_EXHAUSTION_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The listening socket itself is unusable; any other error concerns a single client.
_FATAL_ERRORS = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}

_FIRST_PAUSE, _MAX_PAUSE = 0.05, 1.0  # seconds

_IPV6_ADDRESS_PARTS = 4


class Acceptor:
    """Accepts clients from several sockets in turn.

    Error handling: see `Listener`.
    """

    def __init__(self, sockets: ListeningSockets, service: Service) -> None:
        self._service = service
        # The socket whose turn it is comes first. One whose queue was empty waits until the others
        # are empty, too.
        self._queue_order = deque(sockets)
        self._empty_queues: list[ListeningSocket] = []
        self._is_single_tcp_socket = [sock.passes_options_on for sock in sockets] == [True]
        self._pause_length = 0.0
        self.pause_end = 0.0
        """When to accept again after an error (``monotonic``); 0: there was no error."""

    @property
    def may_accept(self) -> bool:
        """Whether to accept now: there is no pause, or it is over."""
        return not self.pause_end or time.monotonic() >= self.pause_end

    def end_pause(self) -> None:
        """End the pause: a connection that has just ended may have freed a descriptor."""
        if self.pause_end:
            self.pause_end = time.monotonic()

    def accept(self) -> AcceptedClient | None:
        """Accept a client, and return it; None if none waits, or none can be accepted now."""
        queue_order = self._queue_order
        while queue_order:
            sock = queue_order[0]
            try:
                client, peer = sock.accept()
            except BlockingIOError:
                self.pause_end = 0.0
                self._empty_queues.append(queue_order.popleft())
            except OSError as error:
                if error.errno in _FATAL_ERRORS:
                    raise
                self._service.totals.accept_errors += 1
                self._service.vitals.count_accept_error(error.errno)
                if error.errno in _EXHAUSTION_ERRORS:
                    self._back_off(error)
                    break
                self._service.log.warning_each_second("accept_failed", error=error.strerror)
            else:
                self._pause_length = self.pause_end = 0.0
                if not self._is_single_tcp_socket:
                    queue_order.rotate(-1)
                    if not sock.passes_options_on:
                        set_timeouts(client, self._service.config)
                # An IPv4 client of an IPv6 socket has the same address as on an IPv4 socket.
                if len(peer) == _IPV6_ADDRESS_PARTS:
                    peer = canonical_host(peer[0]), peer[1]
                return client, peer
        self.start_next_round()
        return None

    def start_next_round(self) -> None:
        """Begin another round over all queues; those that were empty come last."""
        self._queue_order.extend(self._empty_queues)
        self._empty_queues.clear()

    def _back_off(self, error: OSError) -> None:
        self._pause_length = min(self._pause_length * 2 or _FIRST_PAUSE, _MAX_PAUSE)
        self.pause_end = time.monotonic() + self._pause_length
        self._service.log.warning_each_second(
            "accept_paused",
            error=error.strerror,
            seconds=self._pause_length,
            advice="clients wait in the kernel's queue; raise the descriptor limit (ulimit -n) "
            "or lower --max-connections",
        )
