"""What clients of the grader know of the check that they are a part of."""

import socket
from typing import Protocol

from clients.address import SocketAddress
from loadtest.check.evidence import Timeline
from loadtest.check.failure import raise_own_limit


class Circumstances(Protocol):
    """What a client needs to know of the check that it is a part of; see `trial.CheckContext`."""

    timeline: Timeline
    open_sockets: list[socket.socket]
    """The sockets to close at the end of the check."""

    @property
    def address(self) -> SocketAddress:
        """The address of the server."""

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of the server's address."""

    @property
    def patience(self) -> float:
        """Seconds to wait for something that does not come."""

    @property
    def left(self) -> float:
        """Seconds until the check must be over."""

    @property
    def greeting(self) -> bytes:
        """What the server sends before everything else, though it should not."""

    @property
    def elsewhere(self) -> str:
        """The addresses on which the server's process listens, if we may look at it."""

    def answer(self, question: bytes) -> bytes:
        """Return what is owed for `question`."""

    def text(self, size: int) -> bytes:
        """Return something to send; other bytes at each call."""


def new_socket(trial: Circumstances) -> socket.socket:
    """Return a socket for a connection to the server, which the end of the check closes.

    Raises:
        OwnLimitReached: This machine has no more.
    """
    try:
        sock = socket.socket(trial.family, socket.SOCK_STREAM)
    except OSError as error:
        raise_own_limit(error.errno)
        raise
    trial.open_sockets.append(sock)
    return sock
