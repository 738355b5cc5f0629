"""The one accept policy of every backend: errors, back-off, limits, rejection."""

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

# Clients accepted in a row before open connections get a turn: one thread may serve both.
_MAX_ACCEPTS_IN_A_ROW = 64

_ROOM_POLL_INTERVAL = 0.1
"""Seconds between two checks for a free slot, where nothing announces one."""
_SHED_INTERVAL = 0.01  # seconds between asking one client to leave and asking another


class Listener:
    """Iterating over a listener accepts: one `Connection` after another, until the server drains.

    It accepts from all of the server's listening sockets in turn. The limits, a pause, the
    rejection of clients and the drain are the same for all of them.

    Resource handling: a connection that was yielded holds a slot until it was served or refused.

    Error handling, by the result of accept(2):

    - nothing to accept: wait, cooperatively if the backend's model does;
    - EMFILE, ENFILE, ENOBUFS, ENOMEM: log once a second, pause 50 ms, doubling up to 1 s, or until
      a connection ends; the clients stay in the kernel's queue;
    - EBADF, EINVAL, ENOTSOCK: raised, because the listening socket is unusable;
    - anything else (ECONNABORTED, EPROTO, a network error of one client): go on.
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
        self._next_shed = 0.0
        self._watched: dict[int, bool] = {}  # descriptor → exclusively

    def __iter__(self) -> Iterator[Connection]:
        """Accept in the thread that asks for the next connection, which blocks.

        The main thread must call this, because the server is announced now. After that, any thread
        may ask for connections, one at a time. Models that must not block use `flow`.
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
        """Return the server's main flow: accept, then drain, to the end.

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
        """Yield each new connection, or what to wait for where there is none."""
        lifecycle = self._lifecycle
        in_a_row = 0
        has_run = lifecycle.running
        while lifecycle.running:
            lifecycle.run_hooks()  # clients may arrive so fast that this loop never waits
            if in_a_row < _MAX_ACCEPTS_IN_A_ROW and self._acceptor.may_accept:
                in_a_row += 1
                has_accepted, connection = self._accept_one()
                if connection is not None:
                    yield connection
                if has_accepted:
                    continue
            yield from self._wait(at_once=in_a_row >= _MAX_ACCEPTS_IN_A_ROW)
            in_a_row = 0
        self._unwatch_all()
        # A worker that was told to drain before it started serves nobody. Another process accepts
        # its clients, and the reload that started this worker may have been abandoned.
        if has_run or not lifecycle.retiring:
            last_arrivals = LastArrivals(self._sockets, self._acceptor, self._gate, self._service)
            yield from last_arrivals.steps()
        self.close()

    def close(self) -> None:
        """Close the listening sockets, and the clients that were turned away."""
        self._unwatch_all()
        self._sockets.close()
        self._gate.lingering_close.close_all()

    def _unwatch_all(self) -> None:
        for fd in list(self._watched):
            self._watch(fd, active=False)

    def _watch(self, fd: int, *, active: bool, exclusive: bool = True) -> None:
        before = self._watched.get(fd)
        if before is not None and (not active or before != exclusive):
            self._lifecycle.forget(fd)
            del self._watched[fd]
        if active and fd not in self._watched:
            self._lifecycle.watch(fd, exclusive=exclusive)
            self._watched[fd] = exclusive

    # -- accepting -----------------------------------------------------------------------------

    def _accept_one(self) -> tuple[bool, Connection | None]:
        """Accept a client, which gets a slot or is turned away.

        Returns:
            Whether a client was accepted, and its connection if it was admitted.
        """
        service = self._service
        slots = service.slots
        if not self._gate.rejects:
            # The slot first, so that a client without one stays in the kernel's queue.
            if slots.take():
                client = self._acceptor.accept()
                if client is not None:
                    return True, self._gate.receive(*client)
                slots.give()
            return False, None
        # The client first: a slot that is taken only to look into the queue would make another
        # process turn its clients away.
        if self._gate.wants_clients:
            client = self._acceptor.accept()
            if client is not None:
                if slots.take():
                    return True, self._gate.receive(*client)
                sock, peer = client
                self._gate.turn_away(sock, "rejected", client=peer[0], limit=service.limit)
                return True, None
        return False, None

    def _wait(self, *, at_once: bool) -> Iterator[Connection | Readable]:
        """Wait for a client, a free slot, the end of a pause, or another event of the main flow."""
        service, slots = self._service, self._service.slots
        self._acceptor.start_next_round()
        # Ask to be woken before looking for a slot, so that none is missed in between.
        service.wake_on_release = True
        wants_clients = self._gate.wants_clients
        service.wake_on_release = not wants_clients
        now = time.monotonic()
        in_pause = now < self._acceptor.pause_end
        shedding = not wants_clients and self._gate.sheds and now >= self._next_shed
        # While shedding, all processes wake up: the kernel might choose one with no idle client.
        accepts = (wants_clients or shedding) and not in_pause
        for fd in self._fds:
            self._watch(fd, active=accepts, exclusive=not shedding)
        if slots.fd is not None:
            # All processes that could use a slot wake up, because some may be too busy to accept.
            self._watch(slots.fd, active=not wants_clients and not slots.full, exclusive=False)
        timeout = self._next_timeout(now, wants_clients=wants_clients)
        yield self._lifecycle.next_wait(0.0 if at_once else timeout)
        ready = self._lifecycle.dispatch_ready()
        service.wake_on_release = False
        if ready:
            self._acceptor.end_pause()
        if shedding and self._fds & ready:
            self._make_room()
        if self._gate.lingering_close:
            self._gate.lingering_close.close_finished(ready)
        if self._gate.pending_headers:
            yield from self._gate.admit_ready(ready)

    def _next_timeout(self, now: float, *, wants_clients: bool) -> float | None:
        """Return the seconds until the next deadline; None: there is none."""
        deadlines = [self._gate.next_deadline]
        if now < self._acceptor.pause_end:
            deadlines.append(self._acceptor.pause_end)
        if not wants_clients and self._gate.sheds and now < self._next_shed:
            deadlines.append(self._next_shed)
        if (next_sweep := self._service.sweep()) is not None:
            deadlines.append(now + next_sweep)
        if not wants_clients and self._gate.rejects:
            # Other processes have room, and nothing announces that they have no more.
            deadlines.append(now + _ROOM_POLL_INTERVAL)
        nearest = min(deadlines)
        return None if nearest == inf else max(0.0, nearest - now)

    def _make_room(self) -> None:
        """Ask an idle client to leave for one that waits, if there is still no free slot."""
        self._service.wake_on_release = True
        if not self._gate.wants_clients:
            makes_room = self._shedder.shed(self._sockets, self._sockets.queue()[0])
            self._next_shed = time.monotonic() + (
                _SHED_INTERVAL if makes_room else _ROOM_POLL_INTERVAL
            )
