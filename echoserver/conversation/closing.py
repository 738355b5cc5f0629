"""The end of a conversation: our direction ends, and no data on its way is destroyed."""

import math
import socket
import time
from collections.abc import Generator

from echoserver.conversation.exchange import CHUNK, POLL_INTERVAL, Exchange
from echoserver.conversation.interfaces import Tls
from echoserver.flow import Flow, Readable, Sleep, Wait, WaitResult, Writable
from echoserver.system.sockets import undelivered_bytes

# Seconds that a connection which we end waits for the peer's end. Closing with unread input makes
# the kernel send RST, and that destroys output still on its way (RFC 1122, 4.2.2.13).
LINGER = 1.0

_DELIVERY_POLL_INTERVAL = 0.05  # seconds between two checks for undelivered output


def close_stream(exchange: Exchange, *, peer_has_ended: bool) -> Flow:
    """End our direction of the stream, without destroying data that is on its way.

    A peer that has ended its stream sends nothing more, so the kernel delivers the remaining output
    and closes by itself. During the drain that is not enough: the process is about to end, perhaps
    with its whole network namespace, and with it the output that the kernel holds.
    """
    if exchange.tls is not None:
        yield from _close_notify(exchange, exchange.tls)
    if not (peer_has_ended and exchange.terms.lifecycle.running):
        yield from _end_stream(exchange, peer_has_ended=peer_has_ended)


def _close_notify(exchange: Exchange, tls: Tls) -> Flow:
    """Send close_notify, which ends our direction of the TLS stream."""
    timeout = exchange.terms.config.write_timeout or math.inf
    deadline = time.monotonic() + timeout
    while True:
        try:
            tls.close_notify()
        except BlockingIOError:
            remaining = min(deadline, exchange.terms.lifecycle.deadline) - time.monotonic()
        else:
            return
        if remaining <= 0:
            return
        yield Writable(exchange.sock.fileno(), min(remaining, POLL_INTERVAL))


def _end_stream(exchange: Exchange, *, peer_has_ended: bool) -> Flow:
    """Send our FIN, and wait until closing the socket cannot destroy any output."""
    lifecycle = exchange.terms.lifecycle
    exchange.sock.shutdown(socket.SHUT_WR)
    start_time = time.monotonic()
    if not peer_has_ended:
        # A connection that is open at the drain's deadline counts as cut, so end before it.
        fin_deadline = start_time + min(LINGER, (lifecycle.deadline - start_time) / 2)
        while (remaining := fin_deadline - time.monotonic()) > 0 and not peer_has_ended:
            peer_has_ended = yield from _discard(exchange, remaining)
    while undelivered_bytes(exchange.sock) and time.monotonic() < _delivery_deadline(
        exchange, start_time
    ):
        if peer_has_ended:
            yield Sleep(_DELIVERY_POLL_INTERVAL)
        else:
            peer_has_ended = yield from _discard(exchange, _DELIVERY_POLL_INTERVAL)


def _delivery_deadline(exchange: Exchange, start_time: float) -> float:
    """Return until when to wait for a peer that does not take the kernel's output."""
    lifecycle = exchange.terms.lifecycle
    if not lifecycle.running:
        # So that the connection is still open at the deadline, and is counted.
        return lifecycle.deadline + LINGER
    return start_time + (exchange.terms.config.write_timeout or math.inf)


def _discard(exchange: Exchange, seconds: float) -> Generator[Wait, WaitResult, bool]:
    """Read and count what comes after our FIN; tell whether it was the peer's FIN."""
    pending = exchange.tls is not None and exchange.stream is exchange.tls and exchange.tls.pending
    if not pending and (yield Readable(exchange.sock.fileno(), seconds)):
        return False
    try:
        data = exchange.stream.recv(CHUNK, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    exchange.bytes_discarded += len(data)
    return not data
