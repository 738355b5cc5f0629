"""Who may connect, by address (``--allow``, ``--deny``, ``--proxy-from``)."""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Protocol

from echoserver.addresses import is_unix
from echoserver.config import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_REMEMBERED = 4096  # addresses that need not be parsed again


class Rules(Protocol):
    """Who may connect; see `Config`."""

    @property
    def allow(self) -> tuple[Network, ...]:
        """A client in none of these networks is rejected, where there are any."""

    @property
    def deny(self) -> tuple[Network, ...]:
        """A client in one of these networks is rejected."""


@lru_cache(_REMEMBERED)
def address_of(peer: str) -> Address:
    """Return a peer's address: ``::ffff:192.0.2.1`` is one of IPv4, whatever the socket says."""
    address = ipaddress.ip_address(peer.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Tell whether an address is in one of some networks."""
    return any(address in network for network in networks)


def from_balancer(peer: str, balancers: Sequence[Network | Literal["unix"]]) -> bool:
    """Tell whether a peer is one of the balancers whose PROXY headers are believed."""
    if is_unix(peer):
        return "unix" in balancers
    return within(address_of(peer), [one for one in balancers if one != "unix"])


def limited(peer: str) -> bool:
    """Tell whether the connections of a peer's address may be counted: it has one."""
    return not is_unix(peer)


def admitted(peer: str, rules: Rules) -> bool:
    """Tell whether a peer may connect; rules for addresses say nothing about UNIX sockets."""
    if not (rules.allow or rules.deny) or is_unix(peer):
        return True
    address = address_of(peer)
    if within(address, rules.deny):
        return False
    return not rules.allow or within(address, rules.allow)
