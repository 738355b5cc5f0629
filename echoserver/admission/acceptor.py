"""accept(2), from all listening sockets in turn; its errors, and the pauses that they call for."""

import errno
import socket
import time
from collections import deque

from echoserver.admission.listening_sockets import ListeningSocket, ListeningSockets, set_timeouts
from echoserver.service import Service
from echoserver.system.sockets import spelled

Accepted = tuple[socket.socket, tuple[str, int]]
"""A client's socket, and its address."""

# Out of descriptors or memory: accept(2) leaves the client in the queue, so waiting loses nothing.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The listener itself is of no use any more; anything else is one client's misfortune.
_FATAL = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds

_IPV6 = 4  # parts of an address


class Acceptor:
    """Accepts clients from several sockets in turn.

    Error handling: see `Listener`.
    """

    def __init__(self, sockets: ListeningSockets, service: Service) -> None:
        self._service = service
        # Whose turn it is comes first; whose queue was found empty waits for the others'.
        self._turns = deque(sockets)
        self._empty: list[ListeningSocket] = []
        self._one_of_tcp = [sock.passes_options_on for sock in sockets] == [True]
        self._pause_length = 0.0
        self.pause_ends = 0.0
        """When it may accept again, after an error (``monotonic``); 0: there was none."""

    @property
    def may_accept(self) -> bool:
        """There is no pause, or it is over."""
        return not self.pause_ends or time.monotonic() >= self.pause_ends

    def end_pause(self) -> None:
        """Accept again: what has just ended may have given a descriptor back."""
        if self.pause_ends:
            self.pause_ends = time.monotonic()

    def accept(self) -> Accepted | None:
        """Return a client and its address; None where none waits or none can be taken now."""
        turns = self._turns
        while turns:
            sock = turns[0]
            try:
                client, peer = sock.accept()
            except BlockingIOError:
                self.pause_ends = 0.0
                self._empty.append(turns.popleft())
            except OSError as error:
                if error.errno in _FATAL:
                    raise
                self._service.totals.accept_errors += 1
                self._service.vitals.count_accept_error(error.errno)
                if error.errno in _EXHAUSTED:
                    self._back_off(error)
                    break
                self._service.log.warning_each_second("accept_failed", error=error.strerror)
            else:
                self._pause_length = self.pause_ends = 0.0
                if not self._one_of_tcp:
                    turns.rotate(-1)
                    if not sock.passes_options_on:
                        set_timeouts(client, self._service.config)
                # An IPv4 client of an IPv6 socket is called what it is everywhere.
                return client, (spelled(peer[0]), peer[1]) if len(peer) == _IPV6 else peer
        self.look_everywhere()
        return None

    def look_everywhere(self) -> None:
        """Begin another round over all queues, those that were empty last."""
        self._turns.extend(self._empty)
        self._empty.clear()

    def _back_off(self, error: OSError) -> None:
        self._pause_length = min(self._pause_length * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
        self.pause_ends = time.monotonic() + self._pause_length
        self._service.log.warning_each_second(
            "accept_paused",
            error=error.strerror,
            seconds=self._pause_length,
            advice="clients wait in the kernel's queue; raise the descriptor limit (ulimit -n) "
            "or lower --max-connections",
        )
