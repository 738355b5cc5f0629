"""The one accept policy of every backend: errors, back-off, limits, who is turned away."""

import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from math import inf

from echoserver.admission.binding import ListeningSocket, ListeningSockets, set_timeouts
from echoserver.admission.lingering_close import Lingering
from echoserver.admission.proxy_headers import AwaitedHeaders, Identified
from echoserver.conversation.connection import Connection
from echoserver.flow import Flow, Readable
from echoserver.service import Service
from echoserver.service.quota import admitted, from_balancer, limited
from echoserver.system.sockets import abort, spelled

# Out of descriptors or memory: accept(2) leaves the client in the queue, so waiting loses nothing.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The listener itself is of no use any more; anything else is one client's misfortune.
_FATAL = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}

# Clients accepted before others have a turn: one thread may be all there is.
_MOST_IN_A_ROW = 64

_FIRST_PAUSE = 0.05  # seconds
_LONGEST_PAUSE = 1.0

_LATEST_RESET = 0.5  # seconds
_GLANCE = 0.1
_SHED_NEXT = 0.01  # seconds that one who was asked to leave has for it, before another is


_IPV6 = 4  # parts of an address

# How the log calls what `Totals` counts.
_TURNED_AWAY = {
    "rejected": "client_rejected",
    "rejected_per_ip": "address_rejected",
    "denied": "client_denied",
    "proxy_failures": "proxy_failed",
}


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
        # Whose turn it is comes first; whose queue was found empty waits for the others'.
        self._turns = deque(sockets)
        self._empty: list[ListeningSocket] = []
        self._one_of_tcp = [sock.passes_options_on for sock in sockets] == [True]
        self._service = service
        self._ready = ready
        self._lifecycle = service.lifecycle
        self._pause_length = 0.0
        self._pause_ends = 0.0
        self._shed_from = 0.0
        self._awaited = AwaitedHeaders(self._lifecycle)
        self._outlives_us = sockets.handed_over
        self._lingering = Lingering(self._lifecycle)
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
        while lifecycle.running:
            lifecycle.run_hooks()  # clients may come so fast that it never waits
            if in_a_row < _MOST_IN_A_ROW and self._may_accept():
                in_a_row += 1
                accepted, connection = self._accept_one()
                if connection is not None:
                    yield connection
                if accepted:
                    continue
            yield from self._wait(at_once=in_a_row >= _MOST_IN_A_ROW)
            in_a_row = 0
        yield from self._last_arrivals()
        self.close()

    def close(self) -> None:
        """Stop listening."""
        for fd in list(self._watched):
            self._watch(fd, wanted=False)
        self._sockets.close()
        self._lingering.close_all()

    def _watch(self, fd: int, *, wanted: bool, exclusive: bool = True) -> None:
        before = self._watched.get(fd)
        if before is not None and (not wanted or before != exclusive):
            self._lifecycle.forget(fd)
            del self._watched[fd]
        if wanted and fd not in self._watched:
            self._lifecycle.watch(fd, exclusive=exclusive)
            self._watched[fd] = exclusive

    # -- accepting -----------------------------------------------------------------------------

    def _may_accept(self) -> bool:
        return not self._pause_ends or time.monotonic() >= self._pause_ends

    def _accept_one(self) -> tuple[bool, Connection | None]:
        """Accept a client, for whom there is a slot or who is turned away.

        Returns:
            Whether one was accepted, and its connection if it was admitted.
        """
        service = self._service
        slots = service.slots
        if not self._rejecting:
            # A slot first: whom there is none for stays in the kernel's queue.
            if slots.take():
                accepted = self._accept()
                if accepted is not None:
                    return True, self._receive(*accepted)
                slots.give()
            return False, None
        # The client first: a slot that is taken only to look whether someone is there would
        # have another process turn its clients away.
        if self._wants_clients:
            accepted = self._accept()
            if accepted is not None:
                if slots.take():
                    return True, self._receive(*accepted)
                sock, peer = accepted
                self._turn_away(sock, "rejected", client=peer[0], limit=service.limit)
                return True, None
        return False, None

    def _receive(self, sock: socket.socket, peer: tuple[str, int]) -> Connection | None:
        """Decide about a client, for whom a slot was taken: whether it may connect at all.

        Returns:
            Its connection; None: it was turned away, or waits for its PROXY header.
        """
        config = self._service.config
        if not config.proxy_protocol:
            return self._admit(sock, peer)
        if not from_balancer(peer[0], config.proxy_from):
            return self._identified(Identified(sock, peer, "not from a balancer (--proxy-from)"))
        return self._identified(self._awaited.enter(sock, peer, config.handshake_timeout))

    def _identified(self, identified: Identified | None) -> Connection | None:
        """Decide about a client whose PROXY header was awaited, if that is over."""
        if identified is None:
            return None
        if identified.problem:
            self._service.slots.give()
            self._turn_away(
                identified.sock,
                "proxy_failures",
                client=identified.peer[0],
                reason=identified.problem,
            )
            return None
        return self._admit(identified.sock, identified.peer)

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> Connection | None:
        """Admit a client whose address is known, if it may come in."""
        service = self._service
        most = service.config.max_connections_per_ip
        counted = most is not None and limited(peer[0])
        if not admitted(peer[0], service.config):
            refused = "denied"
        elif counted and not service.quota.take(peer[0], most or 0):
            refused = "rejected_per_ip"
        else:
            return service.admit(sock, peer, counted=counted)
        service.slots.give()
        self._turn_away(sock, refused, client=peer[0])
        return None

    @property
    def _rejecting(self) -> bool:
        return self._service.config.overload == "reject"

    @property
    def _sheds(self) -> bool:
        return self._service.config.overload == "shed-idle"

    @property
    def _wants_clients(self) -> bool:
        """Whoever comes can be admitted here, or must be turned away."""
        slots = self._service.slots
        if self._rejecting:
            return not slots.full or slots.exhausted  # otherwise, others have room
        return not (slots.full or slots.exhausted)

    def _accept(self) -> tuple[socket.socket, tuple[str, int]] | None:
        """Return a client and its address; None where none waits or none can be taken now."""
        turns = self._turns
        while turns:
            sock = turns[0]
            try:
                client, peer = sock.accept()
            except BlockingIOError:
                self._pause_ends = 0.0
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
                self._pause_length = self._pause_ends = 0.0
                if not self._one_of_tcp:
                    turns.rotate(-1)
                    if not sock.passes_options_on:
                        set_timeouts(client, self._service.config)
                # An IPv4 client of an IPv6 socket is called what it is everywhere.
                return client, (spelled(peer[0]), peer[1]) if len(peer) == _IPV6 else peer
        self._look_everywhere()
        return None

    def _look_everywhere(self) -> None:
        """Begin another round over all queues, those that were empty last."""
        self._turns.extend(self._empty)
        self._empty.clear()

    def _back_off(self, error: OSError) -> None:
        self._pause_length = min(self._pause_length * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
        self._pause_ends = time.monotonic() + self._pause_length
        self._service.log.warning_each_second(
            "accept_paused",
            error=error.strerror,
            seconds=self._pause_length,
            advice="clients wait in the kernel's queue; raise the descriptor limit (ulimit -n) "
            "or lower --max-connections",
        )

    def _wait(self, *, at_once: bool) -> Iterator[Connection | Readable]:
        """Wait for a client, a free slot, the end of a pause, or whatever ends the wait."""
        service, slots = self._service, self._service.slots
        self._look_everywhere()
        # Announce the wish for a slot before looking, lest one comes free in between.
        service.wake_on_release = True
        wanted = self._wants_clients
        service.wake_on_release = not wanted
        now = time.monotonic()
        paused = now < self._pause_ends
        shedding = not wanted and self._sheds and now >= self._shed_from
        # To make room may be for another process than the one that the kernel would choose.
        watched = (wanted or shedding) and not paused
        for fd in self._fds:
            self._watch(fd, wanted=watched, exclusive=not shedding)
        if slots.fd is not None:
            # All who could use a slot wake up: who takes it may be too busy to accept at once.
            self._watch(slots.fd, wanted=not wanted and not slots.full, exclusive=False)
        longest = self._longest_wait(now, wanted=wanted)
        yield self._lifecycle.something(0.0 if at_once else longest)
        ready = self._lifecycle.look()
        service.wake_on_release = False
        if self._pause_ends and ready:
            self._pause_ends = time.monotonic()  # what ended may have given a descriptor back
        if shedding and self._fds & ready:
            self._make_room()
        if self._lingering:
            self._lingering.look_at(ready)
        if self._awaited:
            yield from self._welcome(ready)

    def _longest_wait(self, now: float, *, wanted: bool) -> float | None:
        """Return after how many seconds there is something to do, whatever comes; None: never."""
        deadlines = [inf]
        if self._lingering:
            deadlines.append(self._lingering.next_deadline)
        if self._awaited:
            deadlines.append(self._awaited.next_deadline)
        if now < self._pause_ends:
            deadlines.append(self._pause_ends)
        if not wanted and self._sheds and now < self._shed_from:
            deadlines.append(self._shed_from)
        if (next_sweep := self._service.sweep()) is not None:
            deadlines.append(now + next_sweep)
        if not wanted and self._rejecting:
            deadlines.append(now + _GLANCE)  # others have room; nobody tells when they have none
        nearest = min(deadlines)
        return None if nearest == inf else max(0.0, nearest - now)

    def _make_room(self) -> None:
        """Somebody waits: ask one who is idle to leave, if there is still no slot."""
        self._service.wake_on_release = True
        if not self._wants_clients:
            shed = self._service.shed(self._sockets, self._sockets.queue()[0])
            self._shed_from = time.monotonic() + (_SHED_NEXT if shed else _GLANCE)

    def _welcome(self, ready: set[int]) -> Iterator[Connection]:
        """Admit those whose awaited header has come."""
        for identified in self._awaited.leave(ready):
            connection = self._identified(identified)
            if connection is not None:
                yield connection

    def _last_arrivals(self) -> Iterator[Connection | Readable]:
        """Take in who was in the kernel's queue, or without a header yet, when the drain began."""
        lifecycle = self._lifecycle
        for fd in list(self._watched):
            self._watch(fd, wanted=False)
        self._sockets.remove_files()
        yield from self._last_in_queue()
        late = bool(self._awaited)
        while self._awaited and not lifecycle.killed:
            left = min(lifecycle.stream_deadline, self._awaited.next_deadline) - time.monotonic()
            if left <= 0:
                break
            yield lifecycle.something(left)
            ready = lifecycle.look()
            self._lingering.look_at(ready)
            yield from self._welcome(ready)
        if late and not self._succeeded:
            yield from self._last_in_queue()
        service = self._service
        for sock in self._awaited.empty():
            service.slots.give()
            service.totals.unserved += 1
            abort(sock)
            sock.close()
        if service.slots.fd is None and not self._succeeded:  # nobody else accepts them
            service.totals.unserved += self._sockets.queue()[0]

    @property
    def _succeeded(self) -> bool:
        """Another process accepts from these queues, or will."""
        return self._lifecycle.retiring or self._outlives_us

    def _last_in_queue(self) -> Iterator[Connection | Readable]:
        """Take in who was in the kernel's queue.

        Whoever no slot is free for, or time, is reset and counted; where another process takes
        over, now or when a service manager starts one, they are its clients.
        """
        service, lifecycle = self._service, self._lifecycle
        while not lifecycle.killed:
            in_time = time.monotonic() < lifecycle.stream_deadline
            give_back = service.open > 0  # before accepting: they may end meanwhile
            accepted, room = self._accept_late(in_time=in_time)
            if accepted is None:
                exhausted = self._pause_ends and not self._succeeded
                if not (exhausted and in_time and give_back):
                    return
                yield from self._await_descriptors()
            elif room:
                connection = self._receive(*accepted)
                if connection is not None:
                    yield connection
                lifecycle.run_hooks()
            else:
                service.totals.unserved += 1
                abort(accepted[0])
                accepted[0].close()
                if time.monotonic() > lifecycle.stream_deadline + _LATEST_RESET:
                    return  # they come faster than they can be turned away: the close does it

    def _accept_late(
        self, *, in_time: bool
    ) -> tuple[tuple[socket.socket, tuple[str, int]] | None, bool]:
        """Accept somebody during the drain, and tell whether there is a slot, which is taken."""
        slots = self._service.slots
        if self._rejecting and not self._succeeded:  # in this order, as in `_accept_one`
            accepted = self._accept()
            return accepted, accepted is not None and in_time and slots.take()
        room = in_time and slots.take()
        accepted = None
        if room or not self._succeeded:
            accepted = self._accept()
        if room and accepted is None:
            slots.give()
        return accepted, room

    def _await_descriptors(self) -> Iterator[Readable]:
        """Let those who are served end, which gives descriptors back for those in the queue."""
        service, lifecycle = self._service, self._lifecycle
        service.wake_on_release = True
        service.tell_to_end()
        until = min(self._pause_ends, lifecycle.stream_deadline)
        yield lifecycle.something(max(0.0, until - time.monotonic()))
        self._lingering.look_at(lifecycle.look())

    # -- turning away --------------------------------------------------------------------------

    def _turn_away(self, sock: socket.socket, counter: str, **about: object) -> None:
        """Count and log a client that may not come in, and send it off.

        Args:
            sock: The client's.
            counter: What counts it, of `Totals`.
            about: What is said of it.
        """
        service = self._service
        setattr(service.totals, counter, getattr(service.totals, counter) + 1)
        service.log.warning_each_second(_TURNED_AWAY[counter], **about)
        self._lingering.close_gently(sock)
