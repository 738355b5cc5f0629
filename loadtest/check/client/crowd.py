"""Many clients at a time, in one event loop: each has turns of its own, and verifies every byte."""

import errno
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from loadtest.check.client.circumstances import Circumstances, new_socket
from loadtest.check.client.connection import reset, retransmissions
from loadtest.check.evidence import Difference, difference
from loadtest.check.failure import raise_own_limit

_PIECE = 64 << 10  # bytes
_MAX_PROBLEMS_SHOWN = 6  # problems that are in the timeline


@dataclass(slots=True, eq=False)
class ScriptedClient:
    """One client: the messages that it sends in turn, and its outcome."""

    number: int
    turns: list[bytes]
    """Its messages; each is sent when the one before is answered."""
    abort_after: int | None = None
    """It resets the connection after it has sent this turn, without reading."""
    sock: socket.socket | None = None
    turn: int = 0
    sent: int = 0
    received: bytearray = field(default_factory=bytearray)
    connected: bool = False
    syn_retransmissions: int = 0
    """How often it had to ask for a connection again."""
    retransmissions: int = 0
    seconds: float | None = None
    """From the first SYN until all was answered."""
    problem: str = ""
    """What went wrong; nothing: all was answered, or it aborted as planned."""
    difference: Difference | None = None
    done: bool = False


class ClientGroup:
    """Runs a group of clients, and verifies their replies.

    Args:
        trial: The check at hand.
        visitors: The clients.
        at_once: How many at a time; the next one comes when one leaves. None: all together.
        politely: The next one does not come before all that are connected have had an answer, so
            that the server's queues are not put to the test.
        enough: Seconds after which to stop, if a client has had to ask again for a connection.
    """

    def __init__(
        self,
        trial: Circumstances,
        visitors: list[ScriptedClient],
        at_once: int | None = None,
        *,
        politely: bool = False,
        enough: float | None = None,
    ) -> None:
        self._trial = trial
        self.visitors = visitors
        self._waiting = list(reversed(visitors))
        self._at_once = at_once or len(visitors)
        self._politely = politely
        self._enough = enough
        self._since = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._active: set[ScriptedClient] = set()
        self._start_times: dict[ScriptedClient, float] = {}
        self._failed = 0
        self._last_event = time.monotonic()

    def visit(self) -> list[ScriptedClient]:
        """Run all clients; return those that had a problem."""
        many, at_once = len(self.visitors), self._at_once
        how = f", {at_once} at a time" if at_once < many else ""
        self._trial.timeline.add(f"{many} clients", f"come{how}")
        with self._selector:
            self._admit()
            while self._active and (seconds := self._seconds_left()) > 0:
                for key, events in self._selector.select(seconds):
                    visitor: ScriptedClient = key.data
                    self._last_event = time.monotonic()
                    self._serve(visitor, events)
                self._admit()
            for visitor in list(self._active):
                self._give_up(visitor)
        for visitor in self._waiting:
            visitor.problem = "had no turn, for others were not served"
        return [visitor for visitor in self.visitors if visitor.problem]

    def _seconds_left(self) -> float:
        """Return the seconds to wait for the next event."""
        now = time.monotonic()
        seconds = min(self._last_event + self._trial.patience - now, self._trial.left)
        if self._enough is not None and any(one.syn_retransmissions for one in self.visitors):
            seconds = min(seconds, self._since + self._enough - now)
        return seconds

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._at_once:
            if self._politely and any(one.turn == 0 for one in self._active):
                return
            visitor = self._waiting.pop()
            sock = new_socket(self._trial)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            visitor.sock = sock
            self._start_times[visitor] = time.monotonic()
            self._active.add(visitor)
            error = sock.connect_ex(self._trial.address)
            if error in {0, errno.EINPROGRESS}:
                self._selector.register(sock, selectors.EVENT_WRITE, visitor)
            else:
                raise_own_limit(error)
                self._end(visitor, f"could not connect: {os.strerror(error)}")

    def _serve(self, visitor: ScriptedClient, events: int) -> None:
        sock = visitor.sock
        assert sock is not None  # noqa: S101 - it has had one since it was admitted
        try:
            if not visitor.connected:
                if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._end(visitor, f"could not connect: {os.strerror(error)}")
                    return
                visitor.connected = True
                visitor.syn_retransmissions = retransmissions(sock)
            if events & selectors.EVENT_WRITE:
                self._send(visitor, sock)
            if not visitor.done and events & selectors.EVENT_READ:
                self._receive(visitor, sock)
        except OSError as error:
            self._end(visitor, f"lost the connection: {error.strerror or error}")

    def _send(self, visitor: ScriptedClient, sock: socket.socket) -> None:
        question = visitor.turns[visitor.turn]
        if visitor.sent < len(question):
            piece = memoryview(question)[visitor.sent : visitor.sent + _PIECE]
            visitor.sent += sock.send(piece)
        if visitor.sent == len(question) and visitor.turn == visitor.abort_after:
            self._selector.unregister(sock)
            reset(sock)
            visitor.done = True
            self._active.discard(visitor)
            return
        self._update_events(visitor, sock)

    def _update_events(self, visitor: ScriptedClient, sock: socket.socket) -> None:
        has_more = visitor.sent < len(visitor.turns[visitor.turn])
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if has_more else 0)
        self._selector.modify(sock, events, visitor)

    def _receive(self, visitor: ScriptedClient, sock: socket.socket) -> None:
        piece = sock.recv(_PIECE)
        owed = self._trial.answer(visitor.turns[visitor.turn])
        if visitor.turn == 0:
            owed = self._trial.greeting + owed
        if not piece:
            visitor.difference = difference(bytes(visitor.received), owed)
            self._end(visitor, "got the end of the stream instead of a reply")
            return
        visitor.received += piece
        if not owed.startswith(visitor.received[: len(owed)]) or len(visitor.received) > len(owed):
            visitor.difference = difference(bytes(visitor.received), owed)
            self._end(visitor, "got a wrong reply")
            return
        if len(visitor.received) < len(owed):
            return
        visitor.turn, visitor.sent = visitor.turn + 1, 0
        visitor.received.clear()
        if visitor.turn == len(visitor.turns):
            visitor.seconds = time.monotonic() - self._start_times[visitor]
            visitor.retransmissions = retransmissions(sock)
            self._end(visitor, "")
            return
        self._send(visitor, sock)

    def _give_up(self, visitor: ScriptedClient) -> None:
        if not visitor.connected:
            self._end(visitor, "could not connect: no answer to the SYN")
            return
        what = "got only a part of" if visitor.received else "did not get"
        self._end(visitor, f"{what} the reply to message {visitor.turn + 1}")

    def _end(self, visitor: ScriptedClient, problem: str) -> None:
        visitor.problem = problem
        visitor.done = True
        if problem:
            self._failed += 1
            if self._failed <= _MAX_PROBLEMS_SHOWN:
                self._trial.timeline.add(f"client {visitor.number + 1}", problem)
        sock = visitor.sock
        if sock is not None:
            if sock in self._selector.get_map():
                self._selector.unregister(sock)
            sock.close()
        self._active.discard(visitor)


def problems(visitors: Iterable[ScriptedClient]) -> str:
    """Return the problems of clients in words, the most frequent first."""
    kinds: dict[str, list[int]] = {}
    for visitor in visitors:
        kinds.setdefault(visitor.problem, []).append(visitor.number + 1)
    parts = []
    for problem, numbers in sorted(kinds.items(), key=lambda item: -len(item[1])):
        number_list = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")  # noqa: PLR2004
        who = (
            f"client {number_list}"
            if len(numbers) == 1
            else f"{len(numbers)} clients ({number_list})"
        )
        parts.append(f"{who} {problem}")
    return "; ".join(parts)


def turns(trial: Circumstances, number: int, many: int, size: Callable[[], int]) -> list[bytes]:
    """Return the messages of a client, which begin with its number, so that a mix-up shows."""
    messages = []
    for turn in range(many):
        prefix = b"client %04d turn %02d " % (number + 1, turn)
        messages.append(prefix + trial.text(max(1, size() - len(prefix))))
    return messages
