"""Making room at the limit: the client leaves that has been silent the longest."""

import socket
import time
from collections.abc import Iterable
from math import inf

from echoserver.addresses import is_unix
from echoserver.conversation.connection import Connection
from echoserver.service import Service
from echoserver.system import idle

_SHED_GRACE = 2.5  # seconds that a client which was asked to leave may take for it
_SURVEY_INTERVAL = 0.25  # seconds between two looks at who is silent
_LEAST_SILENCE = 1.0  # seconds


class Shedder:
    """Asks clients of one process to leave (``--overload shed-idle``)."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._surveyed = 0.0
        self._leaving: dict[Connection, float] = {}  # asked to, and when (``monotonic``)
        self._silent: list[Connection] = []  # those to be asked to leave, the next one last

    def shed(self, listeners: Iterable[socket.socket], waiting: int) -> bool:
        """Ask the client to leave that has been silent the longest, and is owed nothing.

        Args:
            listeners: The sockets from which they were accepted.
            waiting: How many clients wait there to be accepted.

        Returns:
            Whether there is one, silent for a second at least; or enough have been asked for
            those that wait, and are about to leave.
        """
        now = time.monotonic()
        self._leaving = {one: at for one, at in self._leaving.items() if self._service.is_open(one)}
        # Who has been asked and stays, for whatever reason, makes no room.
        if sum(now - at < _SHED_GRACE for at in self._leaving.values()) >= waiting:
            return True
        if now - self._surveyed >= _SURVEY_INTERVAL:
            self._surveyed = now
            try:
                self._silent = self._survey(listeners, now)
            except OSError as error:
                self._service.log.warning_each_second("shedding_failed", error=error.strerror)
                return False
        while self._silent:
            connection = self._silent.pop()
            if self._service.ask_to_leave(connection):
                self._leaving[connection] = now
                return True
        return False

    def _survey(self, listeners: Iterable[socket.socket], now: float) -> list[Connection]:
        """Return the connections that may be asked to leave, the most silent one last.

        Raises:
            OSError: The kernel does not tell.
        """
        by_peer = {
            idle.peer(*one.remote): one
            for one in self._service.open_connections()
            if now - self._leaving.get(one, -inf) >= _SHED_GRACE
            and not (one.owed or is_unix(one.remote[0]))
        }
        silent = {
            by_peer[peer]: seconds
            for peer, seconds in idle.silent(listeners).items()
            if seconds >= _LEAST_SILENCE and peer in by_peer
        }
        # Who was asked before is asked again when there is nobody else.
        return sorted(silent, key=lambda one: (one not in self._leaving, silent[one]))
