"""The one accept policy of every backend: errors, back-off, limits, who is turned away."""

import time
from collections.abc import Callable, Iterator
from math import inf

from echoserver.admission.acceptor import Acceptor
from echoserver.admission.gate import Gate
from echoserver.admission.last_arrivals import LastArrivals
from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.conversation.connection import Connection
from echoserver.flow import Flow, Readable
from echoserver.service import Service
from echoserver.service.shedding import Shedder

# Clients accepted before others have a turn: one thread may be all there is.
_MOST_IN_A_ROW = 64

_ROOM_POLL_INTERVAL = 0.1
"""Seconds between two looks at whether there is room, where nobody tells."""
_SHED_NEXT = 0.01  # seconds that one who was asked to leave has for it, before another is


class Listener:
    """Iterating over it accepts: one `Connection` after another, until the server drains.

    It accepts from all of the server's listening sockets in turn: the limits, a pause, who is
    turned away and the drain are the same for all of them.

    Resource handling: a connection that was yielded holds a slot, until it was served or refused.

    Error handling, by what accept(2) reports:

    - nothing to accept: wait, cooperatively if the backend's model does;
    - EMFILE, ENFILE, ENOBUFS, ENOMEM: log once a second, pause 50 ms, doubling up to 1 s, or until
      a connection ends; the clients stay in the kernel's queue;
    - EBADF, EINVAL, ENOTSOCK: raised, for the listener is gone;
    - anything else (ECONNABORTED, EPROTO, a network error of one client's): go on.
    """

    def __init__(
        self, sockets: ListeningSockets, service: Service, ready: Callable[[], object]
    ) -> None:
        self._sockets = sockets
        self._fds = {sock.fileno() for sock in sockets}
        self._service = service
        self._ready = ready
        self._lifecycle = service.lifecycle
        self._acceptor = Acceptor(sockets, service)
        self._gate = Gate(service)
        self._shedder = Shedder(service)
        self._shed_from = 0.0
        self._watched: dict[int, bool] = {}  # descriptor → exclusively

    def __iter__(self) -> Iterator[Connection]:
        """Accept in the thread that asks for the next one, which blocks.

        It must be the main thread that calls this, for the server is announced now. Any thread may
        ask then, one at a time. `flow` is for models that must not block.
        """
        self._ready()
        return self._blocking()

    def _blocking(self) -> Iterator[Connection]:
        for step in self._steps():
            if isinstance(step, Connection):
                yield step
            else:
                self._lifecycle.block(step)

    def flow(self, start: Callable[[Connection], object]) -> Flow:
        """Return the server's main flow: accept, then drain, to the very end.

        Args:
            start: Called with every new connection.
        """
        self._ready()
        for step in self._steps():
            if isinstance(step, Connection):
                start(step)
            else:
                yield step
        yield from self._service.draining()

    def _steps(self) -> Iterator[Connection | Readable]:
        """Yield each new connection, and what to wait for where there is none."""
        lifecycle = self._lifecycle
        in_a_row = 0
        begun = lifecycle.running
        while lifecycle.running:
            lifecycle.run_hooks()  # clients may come so fast that it never waits
            if in_a_row < _MOST_IN_A_ROW and self._acceptor.may_accept:
                in_a_row += 1
                accepted, connection = self._accept_one()
                if connection is not None:
                    yield connection
                if accepted:
                    continue
            yield from self._wait(at_once=in_a_row >= _MOST_IN_A_ROW)
            in_a_row = 0
        self._watch_nothing()
        # A worker that was to leave before it began serves nobody: another process accepts them,
        # and the reload that wanted this one may have been given up.
        if begun or not lifecycle.retiring:
            last = LastArrivals(self._sockets, self._acceptor, self._gate, self._service)
            yield from last.steps()
        self.close()

    def close(self) -> None:
        """Close the listening sockets, and the clients that were turned away."""
        self._watch_nothing()
        self._sockets.close()
        self._gate.lingering.close_all()

    def _watch_nothing(self) -> None:
        for fd in list(self._watched):
            self._watch(fd, wanted=False)

    def _watch(self, fd: int, *, wanted: bool, exclusive: bool = True) -> None:
        before = self._watched.get(fd)
        if before is not None and (not wanted or before != exclusive):
            self._lifecycle.forget(fd)
            del self._watched[fd]
        if wanted and fd not in self._watched:
            self._lifecycle.watch(fd, exclusive=exclusive)
            self._watched[fd] = exclusive

    # -- accepting -----------------------------------------------------------------------------

    def _accept_one(self) -> tuple[bool, Connection | None]:
        """Accept a client, for whom there is a slot or who is turned away.

        Returns:
            Whether one was accepted, and its connection if it was admitted.
        """
        service = self._service
        slots = service.slots
        if not self._gate.rejecting:
            # A slot first: whom there is none for stays in the kernel's queue.
            if slots.take():
                accepted = self._acceptor.accept()
                if accepted is not None:
                    return True, self._gate.receive(*accepted)
                slots.give()
            return False, None
        # The client first: a slot that is taken only to look whether someone is there would
        # have another process turn its clients away.
        if self._gate.wants_clients:
            accepted = self._acceptor.accept()
            if accepted is not None:
                if slots.take():
                    return True, self._gate.receive(*accepted)
                sock, peer = accepted
                self._gate.turn_away(sock, "rejected", client=peer[0], limit=service.limit)
                return True, None
        return False, None

    def _wait(self, *, at_once: bool) -> Iterator[Connection | Readable]:
        """Wait for a client, a free slot, the end of a pause, or whatever ends the wait."""
        service, slots = self._service, self._service.slots
        self._acceptor.look_everywhere()
        # Announce the wish for a slot before looking, lest one comes free in between.
        service.wake_on_release = True
        wanted = self._gate.wants_clients
        service.wake_on_release = not wanted
        now = time.monotonic()
        paused = now < self._acceptor.pause_ends
        shedding = not wanted and self._gate.sheds and now >= self._shed_from
        # To make room may be for another process than the one that the kernel would choose.
        watched = (wanted or shedding) and not paused
        for fd in self._fds:
            self._watch(fd, wanted=watched, exclusive=not shedding)
        if slots.fd is not None:
            # All who could use a slot wake up: who takes it may be too busy to accept at once.
            self._watch(slots.fd, wanted=not wanted and not slots.full, exclusive=False)
        longest = self._longest_wait(now, wanted=wanted)
        yield self._lifecycle.next_wait(0.0 if at_once else longest)
        ready = self._lifecycle.dispatch_ready()
        service.wake_on_release = False
        if ready:
            self._acceptor.end_pause()
        if shedding and self._fds & ready:
            self._make_room()
        if self._gate.lingering:
            self._gate.lingering.look_at(ready)
        if self._gate.awaited:
            yield from self._gate.welcome(ready)

    def _longest_wait(self, now: float, *, wanted: bool) -> float | None:
        """Return after how many seconds there is something to do, whatever comes; None: never."""
        deadlines = [self._gate.next_deadline]
        if now < self._acceptor.pause_ends:
            deadlines.append(self._acceptor.pause_ends)
        if not wanted and self._gate.sheds and now < self._shed_from:
            deadlines.append(self._shed_from)
        if (next_sweep := self._service.sweep()) is not None:
            deadlines.append(now + next_sweep)
        if not wanted and self._gate.rejecting:
            # Others have room, and nobody tells when they have none.
            deadlines.append(now + _ROOM_POLL_INTERVAL)
        nearest = min(deadlines)
        return None if nearest == inf else max(0.0, nearest - now)

    def _make_room(self) -> None:
        """Somebody waits: ask one who is idle to leave, if there is still no slot."""
        self._service.wake_on_release = True
        if not self._gate.wants_clients:
            shed = self._shedder.shed(self._sockets, self._sockets.queue()[0])
            self._shed_from = time.monotonic() + (_SHED_NEXT if shed else _ROOM_POLL_INTERVAL)
