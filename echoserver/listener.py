"""The listening socket, and the one accept policy of every backend: errors, back-off, limits."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

from echoserver.config import Config
from echoserver.connection import (
    CHUNK,
    LINGER,
    WRITE_TIMEOUT_PARTS,
    Connection,
    abort,
    set_timeout,
)
from echoserver.errors import BootError
from echoserver.service import Service

# Out of descriptors or memory: accept(2) leaves the client in the queue, so waiting loses nothing.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The listener itself is of no use any more; anything else is one client's misfortune.
_FATAL = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}

_FIRST_PAUSE = 0.05  # seconds
_LONGEST_PAUSE = 1.0

_LATEST_RESET = 0.5  # seconds

# Clients that are being turned away gently at a time; beyond it they are reset.
_LONGEST_FAREWELL_QUEUE = 64


def bind(config: Config) -> socket.socket:
    """Return a listening socket for `config`.

    Its options are inherited by every connection that it accepts, which saves three system calls
    for each: TCP_NODELAY, and the timeouts that the blocking driver leaves to the kernel.

    Raises:
        BootError: The address cannot be resolved or listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BootError(
            f"{config.source('host')}: cannot resolve the host {config.host!r}: {reason}"
        ) from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            # "::" means every address, of both families, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        set_timeout(sock, socket.SO_RCVTIMEO, config.idle_timeout)
        set_timeout(sock, socket.SO_SNDTIMEO, config.write_timeout / WRITE_TIMEOUT_PARTS)
        sock.bind(address)
        sock.listen(config.backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise BootError(_explain(error, config)) from None
    return sock


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

    def __init__(self, sock: socket.socket, service: Service) -> None:
        self._sock = sock
        self._service = service
        self._lifecycle = service.lifecycle
        self._rejecting = service.config.overload == "reject"
        self._pause_length = 0.0
        self._pause_ends = 0.0
        self._farewells: dict[int, tuple[socket.socket, float]] = {}
        self._watched = False

    def __iter__(self) -> Iterator[Connection]:
        self._announce()
        while self._lifecycle.running:
            self._lifecycle.run_hooks()  # clients may come so fast that it never waits
            if self._may_accept():
                accepted = self._accept()
                if accepted is not None:
                    if not self._service.full:
                        yield self._service.admit(*accepted)
                    else:
                        self._turn_away(accepted[0])
                    continue
            self._wait()
        yield from self._last_arrivals()
        self.close()

    def close(self) -> None:
        """Stop listening. In a forked child: give up its copy, which the parent keeps."""
        self._watch(wanted=False)
        self._sock.close()
        for sock, _ in self._farewells.values():
            self._lifecycle.forget(sock.fileno())
            sock.close()
        self._farewells.clear()

    def _announce(self) -> None:
        """Say that the server serves: whoever reads this line can connect."""
        config = self._service.config
        host, port = self._sock.getsockname()[:2]
        self._service.log.announce(
            "listening",
            host=host,
            port=port,
            backend=config.backend,
            handler=config.handler,
            pid=os.getpid(),
        )

    def _watch(self, *, wanted: bool) -> None:
        if wanted != self._watched:
            if wanted:
                self._lifecycle.watch(self._sock.fileno())
            else:
                self._lifecycle.forget(self._sock.fileno())
            self._watched = wanted

    # -- accepting -----------------------------------------------------------------------------

    def _may_accept(self) -> bool:
        if self._service.full and not self._rejecting:
            return False
        return not self._pause_ends or time.monotonic() >= self._pause_ends

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

    def _wait(self) -> None:
        """Wait for a client, a free slot, the end of a pause, or whatever ends the wait."""
        service = self._service
        accepting = self._may_accept()
        if not accepting:
            # Announce the wish for a slot, then look again, lest one came free in between.
            service.wake_on_release = True
            accepting = self._may_accept()
        self._watch(wanted=accepting)
        ends = [deadline for _, deadline in self._farewells.values()]
        if not accepting and self._pause_ends:
            ends.append(self._pause_ends)
        ready = self._lifecycle.wait(min(ends) - time.monotonic() if ends else None)
        service.wake_on_release = False
        if self._pause_ends and ready:
            self._pause_ends = time.monotonic()  # what ended may have given a descriptor back
        self._see_off(ready)

    def _last_arrivals(self) -> Iterator[Connection]:
        """Take in who was in the kernel's queue when the drain began.

        Whoever no slot is free for, or time, is reset and counted.
        """
        lifecycle = self._lifecycle
        while not lifecycle.killed and (accepted := self._accept()) is not None:
            lifecycle.run_hooks()
            now = time.monotonic()
            if not self._service.full and now < lifecycle.stream_deadline:
                yield self._service.admit(*accepted)
            else:
                self._service.totals.unserved += 1
                abort(accepted[0])
                accepted[0].close()
                if now > lifecycle.stream_deadline + _LATEST_RESET:
                    return  # they come faster than they can be turned away: the close does it

    # -- turning away (--overload reject) --------------------------------------------------------

    def _turn_away(self, sock: socket.socket) -> None:
        """Send FIN and nothing else, and give the peer a second to see it before the close."""
        service = self._service
        service.totals.rejected += 1
        service.log.warning_each_second("client_rejected", limit=service.limit)
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
