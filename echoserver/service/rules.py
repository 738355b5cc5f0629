"""The rules for who may connect, by address (``--allow``, ``--deny``, ``--proxy-from``)."""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Protocol

from echoserver.addresses import is_unix
from echoserver.config import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ADDRESS_CACHE_SIZE = 4096  # addresses


class Rules(Protocol):
    """The rules for who may connect; see `Config`."""

    @property
    def allow(self) -> tuple[Network, ...]:
        """If there are any, a client in none of these networks is rejected."""

    @property
    def deny(self) -> tuple[Network, ...]:
        """A client in one of these networks is rejected."""


@lru_cache(_ADDRESS_CACHE_SIZE)
def address_of(peer: str) -> Address:
    """Return a peer's address: ``::ffff:192.0.2.1`` is an IPv4 address, on any socket."""
    address = ipaddress.ip_address(peer.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def is_in_networks(address: Address, networks: Sequence[Network]) -> bool:
    """Tell whether an address is in one of some networks."""
    return any(address in network for network in networks)


def is_balancer(peer: str, balancers: Sequence[Network | Literal["unix"]]) -> bool:
    """Tell whether a peer is one of the balancers whose PROXY headers are trusted."""
    if is_unix(peer):
        return "unix" in balancers
    return is_in_networks(address_of(peer), [one for one in balancers if one != "unix"])


def has_address(peer: str) -> bool:
    """Tell whether a peer has an IP address, for which its connections can be counted."""
    return not is_unix(peer)


def is_admitted(peer: str, rules: Rules) -> bool:
    """Tell whether a peer may connect; rules for addresses do not apply to UNIX sockets."""
    if not (rules.allow or rules.deny) or is_unix(peer):
        return True
    address = address_of(peer)
    if is_in_networks(address, rules.deny):
        return False
    return not rules.allow or is_in_networks(address, rules.allow)
