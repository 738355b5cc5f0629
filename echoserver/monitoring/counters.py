"""Counters: the totals of a server, and the vitals of a serving process."""

import errno
from dataclasses import dataclass, fields
from typing import Any, Self

from echoserver.outcome import Outcome


class Counters:
    """Base class of counters that are counted by name."""

    __slots__ = ()

    def count(self, name: str, times: int = 1) -> None:
        """Add `times` to the counter `name`."""
        setattr(self, name, getattr(self, name) + times)

    def add(self, other: Self) -> None:
        """Add all counts of `other` to these."""
        counters: Any = self
        for field in fields(counters):
            self.count(field.name, getattr(other, field.name))


@dataclass(slots=True)
class Totals(Counters):
    """What a server did, from its first client to its last; logged in the ``stopped`` line."""

    connections: int = 0
    """Clients that got a slot."""
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_discarded: int = 0
    """Input that came after our FIN, read and thrown away."""
    resets: int = 0
    """Connections that the peer (or the network) broke."""
    idle_timeouts: int = 0
    write_timeouts: int = 0
    handler_errors: int = 0
    tls_failures: int = 0
    """Peers that do not speak TLS, or that could not be trusted."""
    tls_timeouts: int = 0
    """Peers that took too long over the TLS handshake."""
    truncations: int = 0
    """Streams that ended without TLS's close_notify; all that had arrived was answered."""
    refused: int = 0
    """Clients for which no thread or process could be started."""
    rejected: int = 0
    """Clients turned away at the limit (``--overload reject``)."""
    rejected_per_ip: int = 0
    """Clients turned away because their address had its ``--max-connections-per-ip``."""
    denied: int = 0
    """Clients turned away by ``--allow`` and ``--deny``."""
    proxy_failures: int = 0
    """Connections without a trustworthy PROXY header (``--proxy-protocol``)."""
    unserved: int = 0
    """Clients in the kernel's queue for which no slot was free when the drain began."""
    accept_errors: int = 0
    shed: int = 0
    """Connections ended to make room, because they had been silent (``--overload shed-idle``)."""
    cut: int = 0
    """Connections that were still owed output at the drain's deadline."""

    def add_bytes(self, bytes_in: int, bytes_out: int, bytes_discarded: int) -> None:
        """Count bytes that a connection has moved."""
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.bytes_discarded += bytes_discarded


@dataclass(slots=True)
class Vitals(Counters):
    """How a process fares while it serves, besides its totals."""

    open: int = 0
    """Connections that are open now."""
    eof: int = 0
    """Connections that their client ended."""
    drained: int = 0
    """Connections that the server, or its worker, ended because it was stopping."""
    log_lines_dropped: int = 0
    access_lines_dropped: int = 0
    accept_emfile: int = 0
    accept_enfile: int = 0
    accept_enobufs: int = 0
    accept_enomem: int = 0
    accept_econnaborted: int = 0
    accept_other: int = 0
    """Other errors of accept(2)."""

    def count_accept_error(self, number: int | None) -> None:
        """Count an error of accept(2) by its errno."""
        name = f"accept_{errno.errorcode.get(number or 0, '').lower()}"
        self.count(name if hasattr(self, name) else "accept_other")


COUNTED_OUTCOMES: dict[str, str] = {
    Outcome.RESET: "resets",
    Outcome.IDLE_TIMEOUT: "idle_timeouts",
    Outcome.WRITE_TIMEOUT: "write_timeouts",
    Outcome.HANDLER_ERROR: "handler_errors",
    Outcome.TLS_FAILED: "tls_failures",
    Outcome.TLS_TIMEOUT: "tls_timeouts",
    Outcome.TRUNCATED: "truncations",
    Outcome.REFUSED: "refused",
    Outcome.SHED: "shed",
    Outcome.CUT: "cut",
}
"""Outcome of a connection → the counter of `Totals` for it."""

USUAL_OUTCOMES: dict[str, str] = {Outcome.EOF: "eof", Outcome.DRAINED: "drained"}
"""Regular outcome of a connection → the counter of `Vitals` for it."""


def count_end(outcome: str, totals: Totals, vitals: Vitals) -> None:
    """Count why a connection ended."""
    if counter := COUNTED_OUTCOMES.get(outcome):
        totals.count(counter)
    elif counter := USUAL_OUTCOMES.get(outcome):
        vitals.count(counter)
