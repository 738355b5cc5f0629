"""Who is admitted, and who is turned away: the limit, the rules, the quota, the PROXY header."""

import socket
from collections.abc import Iterator

from echoserver.admission.lingering_close import Lingering
from echoserver.admission.proxy_headers import AwaitedHeaders, Identified
from echoserver.conversation.connection import Connection
from echoserver.service import Service
from echoserver.service.rules import admitted, from_balancer, limited

# How the log calls what `Totals` counts.
_TURNED_AWAY = {
    "rejected": "client_rejected",
    "rejected_per_ip": "address_rejected",
    "denied": "client_denied",
    "proxy_failures": "proxy_failed",
}


class Gate:
    """Decides about clients that were accepted."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.awaited = AwaitedHeaders(service.lifecycle)
        """Clients whose PROXY header has not come yet."""
        self.lingering = Lingering(service.lifecycle)
        """Clients that were turned away, and have not ended yet."""

    @property
    def next_deadline(self) -> float:
        """When the first of these must be looked at (``monotonic``); infinite: never."""
        return min(self.lingering.next_deadline, self.awaited.next_deadline)

    def receive(self, sock: socket.socket, peer: tuple[str, int]) -> Connection | None:
        """Decide about a client, for whom a slot was taken: whether it may connect at all.

        Returns:
            Its connection; None: it was turned away, or waits for its PROXY header.
        """
        config = self._service.config
        if not config.proxy_protocol:
            return self._admit(sock, peer)
        if not from_balancer(peer[0], config.proxy_from):
            return self._identified(Identified(sock, peer, "not from a balancer (--proxy-from)"))
        return self._identified(self.awaited.enter(sock, peer, config.handshake_timeout))

    def _identified(self, identified: Identified | None) -> Connection | None:
        """Decide about a client whose PROXY header was awaited, if that is over."""
        if identified is None:
            return None
        if identified.problem:
            self._service.slots.give()
            self.turn_away(
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
        self.turn_away(sock, refused, client=peer[0])
        return None

    @property
    def rejecting(self) -> bool:
        """At the limit, clients are accepted and turned away (``--overload reject``)."""
        return self._service.config.overload == "reject"

    @property
    def sheds(self) -> bool:
        """At the limit, a silent client makes room for the next (``--overload shed-idle``)."""
        return self._service.config.overload == "shed-idle"

    @property
    def wants_clients(self) -> bool:
        """The next client can be admitted here, or must be rejected."""
        slots = self._service.slots
        if self.rejecting:
            return not slots.full or slots.exhausted  # otherwise, others have room
        return not (slots.full or slots.exhausted)

    def welcome(self, ready: set[int]) -> Iterator[Connection]:
        """Admit those whose awaited header has come."""
        for identified in self.awaited.leave(ready):
            connection = self._identified(identified)
            if connection is not None:
                yield connection

    def turn_away(self, sock: socket.socket, counter: str, **about: object) -> None:
        """Count and log a client that may not come in, and send it off.

        Args:
            sock: The client's.
            counter: What counts it, of `Totals`.
            about: What is said of it.
        """
        service = self._service
        service.totals.count(counter)
        service.log.warning_each_second(_TURNED_AWAY[counter], **about)
        self.lingering.close_gently(sock)
