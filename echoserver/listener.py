"""The listening socket, and the one accept policy of every backend: errors, back-off, limits."""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from echoserver.access import address_of, admitted, within
from echoserver.config import Config
from echoserver.connection import (
    CHUNK,
    LINGER,
    Connection,
    write_patience,
)
from echoserver.errors import BootError
from echoserver.flow import Flow, Readable
from echoserver.lobby import Identified, Lobby
from echoserver.service import Service
from echoserver.service_manager import inherited
from echoserver.sockets import abort, set_timeout

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

# Clients that are being turned away gently at a time; beyond it they are reset.
_LONGEST_FAREWELL_QUEUE = 64


# How the log calls what `Totals` counts.
_TURNED_AWAY = {
    "rejected": "client_rejected",
    "rejected_per_ip": "address_rejected",
    "denied": "client_denied",
    "proxy_failures": "proxy_failed",
}


def bind(config: Config) -> socket.socket:
    """Return a listening socket for `config`.

    Its options are inherited by every connection that it accepts, which saves three system calls
    for each: TCP_NODELAY, and the timeouts that the blocking driver leaves to the kernel.

    Raises:
        BootError: The address cannot be resolved or listened on.
    """
    if (handed_over := inherited()) is not None:
        return _adopted(handed_over, config)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BootError(
            f"{config.source('host')}: cannot resolve the host {config.host!r}: {reason}"
        ) from None
    sock = _Listening(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            # "::" means every address, of both families, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        set_inherited_timeouts(sock, config)
        sock.bind(address)
        sock.listen(config.backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise BootError(_explain(error, config)) from None
    return sock


def _adopted(fd: int, config: Config) -> socket.socket:
    """Return a socket that a service manager listens on for us."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        family = sock.family
    sock = _Listening(family, socket.SOCK_STREAM, 0, fd)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_inherited_timeouts(sock, config)
    sock.setblocking(False)
    return sock


class _Listening(socket.socket):
    """A listening socket that knows its family and its type.

    `socket.socket` asks enumerations for them at every ``accept``, which is a third of its time.
    """

    family = socket.AF_UNSPEC
    type = socket.SOCK_STREAM

    def __init__(self, family: int, kind: int, protocol: int, fd: int | None = None) -> None:
        super().__init__(family, kind, protocol, fd)
        self.family = socket.AddressFamily(family)


def set_inherited_timeouts(sock: socket.socket, config: Config) -> None:
    """Set on a listener what the connections that it accepts from now on inherit."""
    set_timeout(sock, socket.SO_RCVTIMEO, config.idle_timeout)
    set_timeout(sock, socket.SO_SNDTIMEO, write_patience(config.write_timeout))


def _explain(error: OSError, config: Config) -> str:
    where = f"[{config.host}]" if ":" in config.host else config.host
    what = f"cannot listen on {where}:{config.port}"
    port, host = config.source("port"), config.source("host")
    if error.errno == errno.EADDRINUSE:
        return f"{what} ({port}): the port is already in use; stop its server or choose another"
    if error.errno == errno.EACCES:
        return f"{what} ({port}): a port this low needs privileges; choose one from 1024 up"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{what} ({host}): this machine does not have that address"
    return f"{what} ({port}): {error.strerror}"


def somaxconn() -> int | None:
    """Return the kernel's cap on the backlog, None where it cannot be told."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:  # noqa: PTH123 - no pathlib for one figure
            return int(file.read())
    except (OSError, ValueError):
        return None


class Listener:
    """Iterating over it accepts: one `Connection` after another, until the server drains.

    Resource handling: a connection that was yielded holds a slot, until it was served or refused.

    Error handling, by what accept(2) reports:

    - nothing to accept: wait, cooperatively if the backend's model does;
    - EMFILE, ENFILE, ENOBUFS, ENOMEM: log once a second, pause 50 ms, doubling up to 1 s, or until
      a connection ends; the clients stay in the kernel's queue;
    - EBADF, EINVAL, ENOTSOCK: raised, for the listener is gone;
    - anything else (ECONNABORTED, EPROTO, a network error of one client's): go on.
    """

    def __init__(self, sock: socket.socket, service: Service, ready: Callable[[], object]) -> None:
        self._sock = sock
        self._service = service
        self._ready = ready
        self._lifecycle = service.lifecycle
        self._pause_length = 0.0
        self._pause_ends = 0.0
        self._shed_from = 0.0
        self._lobby = Lobby(self._lifecycle)
        self._farewells: dict[int, tuple[socket.socket, float]] = {}
        self._watched: dict[int, bool] = {}  # descriptor → exclusively

    def __iter__(self) -> Iterator[Connection]:
        """Accept in the calling thread, which blocks; `flow` is for all other models."""
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
        for step in self._steps():
            if isinstance(step, Connection):
                start(step)
            else:
                yield step
        yield from self._service.draining()

    def _steps(self) -> Iterator[Connection | Readable]:
        """Yield each new connection, and what to wait for where there is none."""
        self._ready()
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
        self._sock.close()
        for sock, _ in self._farewells.values():
            self._lifecycle.forget(sock.fileno())
            sock.close()
        self._farewells.clear()

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
        if self._open:
            accepted = self._accept()
            if accepted is not None:
                if slots.take():
                    return True, self._receive(*accepted)
                self._turn_away(accepted[0], "rejected", limit=service.limit)
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
        if not within(address_of(peer[0]), config.proxy_from):
            return self._identified(Identified(sock, peer, "not from a balancer (--proxy-from)"))
        return self._identified(self._lobby.enter(sock, peer, config.handshake_timeout))

    def _identified(self, visitor: Identified | None) -> Connection | None:
        """Decide about a client that has left the lobby, if it has."""
        if visitor is None:
            return None
        if visitor.problem:
            self._service.slots.give()
            self._turn_away(visitor.sock, "proxy_failures", reason=visitor.problem)
            return None
        return self._admit(visitor.sock, visitor.peer)

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> Connection | None:
        """Admit a client whose address is known, if it may come in."""
        service = self._service
        most = service.config.max_connections_per_ip
        if not admitted(peer[0], service.config):
            refused = "denied"
        elif most is not None and not service.quota.take(peer[0], most):
            refused = "rejected_per_ip"
        else:
            return service.admit(sock, peer, counted=most is not None)
        service.slots.give()
        self._turn_away(sock, refused, client=peer[0])
        return None

    @property
    def _rejecting(self) -> bool:
        return self._service.config.overload == "reject"

    @property
    def _open(self) -> bool:
        """Whoever comes can be admitted here, or must be turned away."""
        slots = self._service.slots
        if self._rejecting:
            return not slots.full or slots.exhausted  # otherwise, others have room
        return not (slots.full or slots.exhausted)

    def _accept(self) -> tuple[socket.socket, tuple[str, int]] | None:
        """Return a client and its address; None where none waits or none can be taken now."""
        while True:
            try:
                accepted = self._sock.accept()
            except BlockingIOError:
                self._pause_ends = 0.0
                return None
            except OSError as error:
                if error.errno in _FATAL:
                    raise
                self._service.totals.accept_errors += 1
                self._service.vitals.count_accept_error(error.errno)
                if error.errno in _EXHAUSTED:
                    self._back_off(error)
                    return None
                self._service.log.warning_each_second("accept_failed", error=error.strerror)
            else:
                self._pause_length = self._pause_ends = 0.0
                return accepted

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
        # Announce the wish for a slot before looking, lest one comes free in between.
        service.wake_on_release = True
        wanted = self._open
        service.wake_on_release = not wanted
        paused = not self._may_accept()
        now = time.monotonic()
        ends = [deadline - now for _, deadline in self._farewells.values()]
        shedding = not wanted and service.config.overload == "shed-idle"
        if shedding and now < self._shed_from:
            ends.append(self._shed_from - now)
            shedding = False
        # To make room may be for another process than the one that the kernel would choose.
        watched = (wanted or shedding) and not paused
        self._watch(self._sock.fileno(), wanted=watched, exclusive=not shedding)
        if slots.fd is not None:
            # All who could use a slot wake up: who takes it may be too busy to accept at once.
            self._watch(slots.fd, wanted=not wanted and not slots.full, exclusive=False)
        if self._lobby:
            ends.append(self._lobby.next_deadline - now)
        if paused:
            ends.append(self._pause_ends - now)
        if (next_sweep := service.sweep()) is not None:
            ends.append(next_sweep)
        if at_once:
            ends.append(0.0)
        if self._rejecting and not wanted:
            ends.append(_GLANCE)  # others have room; nobody tells when they have none
        yield self._lifecycle.something(max(0.0, min(ends)) if ends else None)
        ready = self._lifecycle.look()
        service.wake_on_release = False
        if self._pause_ends and ready:
            self._pause_ends = time.monotonic()  # what ended may have given a descriptor back
        if shedding and self._sock.fileno() in ready and not self._open:
            service.wake_on_release = True
            self._shed_from = time.monotonic() + (
                _SHED_NEXT if service.shed(self._sock) else _GLANCE
            )
        self._see_off(ready)
        yield from self._welcome(ready)

    def _welcome(self, ready: set[int]) -> Iterator[Connection]:
        """Admit those in the lobby whose header has come."""
        for visitor in self._lobby.leave(ready):
            connection = self._identified(visitor)
            if connection is not None:
                yield connection

    def _last_arrivals(self) -> Iterator[Connection | Readable]:
        """Take in who was in the kernel's queue, or the lobby, when the drain began."""
        yield from self._last_in_queue()
        lifecycle = self._lifecycle
        while self._lobby and not lifecycle.killed:
            left = min(lifecycle.stream_deadline, self._lobby.next_deadline) - time.monotonic()
            if left <= 0:
                break
            yield lifecycle.something(left)
            yield from self._welcome(lifecycle.look())
        for sock in self._lobby.empty():
            self._service.slots.give()
            self._service.totals.unserved += 1
            abort(sock)
            sock.close()

    def _last_in_queue(self) -> Iterator[Connection]:
        """Take in who was in the kernel's queue.

        Whoever no slot is free for, or time, is reset and counted; where another process takes
        over, they are its clients.
        """
        service, lifecycle = self._service, self._lifecycle
        slots = service.slots
        while not lifecycle.killed:
            in_time = time.monotonic() < lifecycle.stream_deadline
            if self._rejecting:  # in this order, as in `_accept_one`
                accepted = self._accept()
                room = accepted is not None and in_time and slots.take()
            else:
                room = in_time and slots.take()
                if lifecycle.retiring and not room:
                    return
                accepted = self._accept()
            if accepted is not None and room:
                connection = self._receive(*accepted)
                if connection is not None:
                    yield connection
                lifecycle.run_hooks()
                continue
            if room:
                slots.give()
            if accepted is None:
                return
            service.totals.unserved += 1
            abort(accepted[0])
            accepted[0].close()
            if time.monotonic() > lifecycle.stream_deadline + _LATEST_RESET:
                return  # they come faster than they can be turned away: the close does it

    # -- turning away --------------------------------------------------------------------------

    def _turn_away(self, sock: socket.socket, counter: str, **about: object) -> None:
        """Send FIN and nothing else, and give the peer a second to see it before the close.

        Args:
            sock: The client's.
            counter: What counts it, of `Totals`.
            about: What is said of it.
        """
        service = self._service
        setattr(service.totals, counter, getattr(service.totals, counter) + 1)
        service.log.warning_each_second(_TURNED_AWAY[counter], **about)
        if len(self._farewells) >= _LONGEST_FAREWELL_QUEUE:
            abort(sock)
            sock.close()
            return
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.setblocking(False)
        self._farewells[sock.fileno()] = (sock, time.monotonic() + LINGER)
        self._lifecycle.watch(sock.fileno())

    def _see_off(self, ready: set[int]) -> None:
        now = time.monotonic()
        for fd, (sock, deadline) in list(self._farewells.items()):
            over = now >= deadline
            if fd in ready and not over:
                try:
                    over = not sock.recv(CHUNK)
                except BlockingIOError:
                    pass
                except OSError:
                    over = True
            if over:
                del self._farewells[fd]
                self._lifecycle.forget(fd)
                sock.close()
