"""Making room at the limit: the client that has been silent the longest is disconnected."""

import socket
import time
from collections.abc import Iterable
from math import inf

from echoserver.addresses import is_unix
from echoserver.conversation.connection import Connection
from echoserver.service import Service
from echoserver.system import idle

_SHED_GRACE = 2.5  # seconds in which a client that was asked to leave should have left
_SURVEY_INTERVAL = 0.25  # seconds between two surveys of silent clients
_MIN_SILENCE = 1.0  # seconds


class Shedder:
    """Asks clients of one process to leave (``--overload shed-idle``)."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._last_survey = 0.0
        self._requests: dict[Connection, float] = {}  # when each was asked (``monotonic``)
        self._candidates: list[Connection] = []  # to be asked to leave, the next one last

    def shed(self, listeners: Iterable[socket.socket], waiting: int) -> bool:
        """Ask the client that has been silent the longest, and is owed nothing, to leave.

        Args:
            listeners: The sockets from which clients were accepted.
            waiting: How many clients wait there to be accepted.

        Returns:
            Whether there is such a client, silent for a second at least, or enough clients are
            about to leave for those that wait.
        """
        now = time.monotonic()
        self._requests = {
            one: at for one, at in self._requests.items() if self._service.is_open(one)
        }
        # A client that has been asked and stays, for whatever reason, makes no room.
        if sum(now - at < _SHED_GRACE for at in self._requests.values()) >= waiting:
            return True
        if now - self._last_survey >= _SURVEY_INTERVAL:
            self._last_survey = now
            try:
                self._candidates = self._survey(listeners, now)
            except OSError as error:
                self._service.log.warning_each_second("shedding_failed", error=error.strerror)
                return False
        while self._candidates:
            connection = self._candidates.pop()
            if self._service.ask_to_leave(connection):
                self._requests[connection] = now
                return True
        return False

    def _survey(self, listeners: Iterable[socket.socket], now: float) -> list[Connection]:
        """Return the connections that may be asked to leave, the most silent one last.

        Raises:
            OSError: The kernel does not answer.
        """
        by_peer = {
            idle.peer_key(*one.remote): one
            for one in self._service.open_connections()
            if now - self._requests.get(one, -inf) >= _SHED_GRACE
            and not (one.owed or is_unix(one.remote[0]))
        }
        silent = {
            by_peer[peer]: seconds
            for peer, seconds in idle.silence_by_peer(listeners).items()
            if seconds >= _MIN_SILENCE and peer in by_peer
        }
        # A client that was asked before is asked again only if there is no other.
        return sorted(silent, key=lambda one: (one not in self._requests, silent[one]))
