"""Admitting clients, or turning them away: limit, rules, quota and PROXY header."""

import socket
from collections.abc import Iterator

from echoserver.admission.lingering_close import LingeringClose
from echoserver.admission.proxy_headers import AwaitedHeaders, HeaderResult
from echoserver.conversation.connection import Connection
from echoserver.service import Service
from echoserver.service.rules import has_address, is_admitted, is_balancer

# The log event for each counter of `Totals`.
_REJECTION_EVENTS = {
    "rejected": "client_rejected",
    "rejected_per_ip": "address_rejected",
    "denied": "client_denied",
    "proxy_failures": "proxy_failed",
}


class Gate:
    """Decides whether accepted clients are admitted or turned away."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.pending_headers = AwaitedHeaders(service.lifecycle)
        """Clients whose PROXY header has not come yet."""
        self.lingering_close = LingeringClose(service.lifecycle)
        """Clients that were turned away, and whose connections are not closed yet."""

    @property
    def next_deadline(self) -> float:
        """When to handle the first of these clients (``monotonic``); infinite: never."""
        return min(self.lingering_close.next_deadline, self.pending_headers.next_deadline)

    def receive(self, sock: socket.socket, peer: tuple[str, int]) -> Connection | None:
        """Decide whether a client may connect, for which a slot was taken.

        Returns:
            Its connection; None: it was turned away, or waits for its PROXY header.
        """
        config = self._service.config
        if not config.proxy_protocol:
            return self._admit(sock, peer)
        if not is_balancer(peer[0], config.proxy_from):
            return self._decide(HeaderResult(sock, peer, "not from a balancer (--proxy-from)"))
        return self._decide(self.pending_headers.add(sock, peer, config.handshake_timeout))

    def _decide(self, result: HeaderResult | None) -> Connection | None:
        """Decide about a client whose PROXY header was awaited, once that wait is over."""
        if result is None:
            return None
        if result.problem:
            self._service.slots.give()
            self.turn_away(
                result.sock,
                "proxy_failures",
                client=result.peer[0],
                reason=result.problem,
            )
            return None
        return self._admit(result.sock, result.peer)

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> Connection | None:
        """Admit a client whose address is known, if the rules and the quota allow it."""
        service = self._service
        limit = service.config.max_connections_per_ip
        uses_quota = limit is not None and has_address(peer[0])
        if not is_admitted(peer[0], service.config):
            counter = "denied"
        elif uses_quota and not service.quota.take(peer[0], limit or 0):
            counter = "rejected_per_ip"
        else:
            return service.admit(sock, peer, uses_quota=uses_quota)
        service.slots.give()
        self.turn_away(sock, counter, client=peer[0])
        return None

    @property
    def rejects(self) -> bool:
        """Whether clients are turned away at the limit (``--overload reject``)."""
        return self._service.config.overload == "reject"

    @property
    def sheds(self) -> bool:
        """Whether a silent client makes room at the limit (``--overload shed-idle``)."""
        return self._service.config.overload == "shed-idle"

    @property
    def wants_clients(self) -> bool:
        """Whether to accept the next client: it can be admitted here, or must be rejected."""
        slots = self._service.slots
        if self.rejects:
            # Always where this process is alone. One of several leaves to the others the clients
            # that only they have slots for.
            return not slots.full or slots.exhausted
        return not (slots.full or slots.exhausted)

    def admit_ready(self, ready: set[int]) -> Iterator[Connection]:
        """Admit the clients whose PROXY header has come."""
        for result in self.pending_headers.take_ready(ready):
            connection = self._decide(result)
            if connection is not None:
                yield connection

    def turn_away(self, sock: socket.socket, counter: str, **fields: object) -> None:
        """Count and log a client that may not connect, and close its connection.

        Args:
            sock: The client's socket.
            counter: The field of `Totals` that counts it.
            fields: The fields of the log event.
        """
        service = self._service
        service.totals.count(counter)
        service.log.warning_each_second(_REJECTION_EVENTS[counter], **fields)
        self.lingering_close.close_gently(sock)
