"""The end of a conversation: our direction ends, and nothing is destroyed that is on its way."""

import math
import socket
import time
from collections.abc import Generator

from echoserver.conversation.exchange import CHUNK, POLL_INTERVAL, Exchange
from echoserver.conversation.interfaces import Tls
from echoserver.flow import Flow, Readable, Sleep, Wait, WaitResult, Writable
from echoserver.system.sockets import undelivered

# Seconds that a connection which we end waits for the peer's end. Closing with unread input makes
# the kernel send RST, and that destroys output still on its way (RFC 1122, 4.2.2.13).
LINGER = 1.0

_DELIVERY_POLL_INTERVAL = 0.05  # seconds between two looks at what the kernel has still to deliver


def close_stream(exchange: Exchange, *, peer_has_ended: bool) -> Flow:
    """End our direction, in a way that destroys nothing that is on its way.

    A peer that has ended its stream has nothing more to say: the kernel delivers what is left
    and closes by itself. Unless we drain: then the process is about to go, perhaps with its
    whole network namespace, and the kernel's copy of it with it.
    """
    if exchange.tls is not None:
        yield from _close_notify(exchange, exchange.tls)
    if not (peer_has_ended and exchange.terms.lifecycle.running):
        yield from _end_stream(exchange, peer_has_ended=peer_has_ended)


def _close_notify(exchange: Exchange, tls: Tls) -> Flow:
    """End our direction of the stream, for TLS."""
    patience = exchange.terms.config.write_timeout or math.inf
    deadline = time.monotonic() + patience
    while True:
        try:
            tls.close_notify()
        except BlockingIOError:
            left = min(deadline, exchange.terms.lifecycle.deadline) - time.monotonic()
        else:
            return
        if left <= 0:
            return
        yield Writable(exchange.sock.fileno(), min(left, POLL_INTERVAL))


def _end_stream(exchange: Exchange, *, peer_has_ended: bool) -> Flow:
    """Send our FIN, and stay until closing cannot destroy anything."""
    lifecycle = exchange.terms.lifecycle
    exchange.sock.shutdown(socket.SHUT_WR)
    begun = time.monotonic()
    if not peer_has_ended:
        # A connection that is open at the drain's deadline counts as owed something: end before it.
        polite_until = begun + min(LINGER, (lifecycle.deadline - begun) / 2)
        while (left := polite_until - time.monotonic()) > 0 and not peer_has_ended:
            peer_has_ended = yield from _discard(exchange, left)
    while undelivered(exchange.sock) and time.monotonic() < _delivery_deadline(exchange, begun):
        if peer_has_ended:
            yield Sleep(_DELIVERY_POLL_INTERVAL)
        else:
            peer_has_ended = yield from _discard(exchange, _DELIVERY_POLL_INTERVAL)


def _delivery_deadline(exchange: Exchange, begun: float) -> float:
    """Return until when to wait for a peer that does not take what the kernel has for it."""
    lifecycle = exchange.terms.lifecycle
    if not lifecycle.running:
        return lifecycle.deadline + LINGER  # so that it is still there at the deadline
    return begun + (exchange.terms.config.write_timeout or math.inf)


def _discard(exchange: Exchange, seconds: float) -> Generator[Wait, WaitResult, bool]:
    """Read and count what comes after our FIN; tell whether it was the peer's."""
    pending = exchange.tls is not None and exchange.stream is exchange.tls and exchange.tls.pending
    if not pending and (yield Readable(exchange.sock.fileno(), seconds)):
        return False
    try:
        data = exchange.stream.recv(CHUNK, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    exchange.bytes_discarded += len(data)
    return not data
