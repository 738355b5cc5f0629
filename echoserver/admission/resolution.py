"""The addresses that hosts stand for, before anything listens there."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from echoserver.addresses import is_unix, socket_name
from echoserver.config import Config
from echoserver.errors import BootError
from echoserver.system.systemd import inherited_descriptors


@dataclass(frozen=True, slots=True)
class Place:
    """One address to listen on."""

    host: str
    """The host as it was typed, which may be a name with several addresses."""
    family: int
    address: Any
    """The address as bind(2) takes it, with any port."""

    def covered_by(self, other: "Place") -> bool:
        """Tell whether a socket that listens on the place `other` listens on this one, too."""
        if socket.AF_UNIX in {self.family, other.family}:
            return bool(self.address == other.address)
        if other.address[0] == "::":  # which means every address, of both families
            return True
        if self.family != other.family:
            return False
        other_host, own_host = other.address[0], self.address[0]
        return bool(other_host == own_host or (other_host == "0.0.0.0" and own_host != "::"))

    def at(self, port: int) -> Any:
        """Return the place's address with this port."""
        if self.family == socket.AF_UNIX:
            return self.address
        host, _, *scope = self.address
        return (host, port, *scope)


@dataclass(frozen=True, slots=True)
class ResolvedAddresses:
    """The places where a server is going to listen."""

    places: Sequence[Place] = ()
    """Each place once, however many hosts have it."""
    covered_hosts: frozenset[str] = frozenset()
    """The hosts of which an address is covered by a place of another host."""
    inherited_fds: Sequence[int] = ()
    """The descriptors of listening sockets that a service manager has made; if there are any, no
    host is resolved."""


def resolve(config: Config) -> ResolvedAddresses:
    """Return the addresses of all hosts of `config`.

    A name server that does not answer delays this for longer than a person waits, and no signal
    handler runs meanwhile (getaddrinfo(3) is C). So this is called before signal handlers are
    installed, and a signal ends the process.

    Raises:
        BootError: A host cannot be resolved, or a descriptor of the service manager is unusable.
    """
    if inherited_fds := inherited_descriptors():
        return ResolvedAddresses(inherited_fds=inherited_fds)
    candidates: list[Place] = []
    for host in config.host:
        if is_unix(host):
            candidates.append(Place(host, socket.AF_UNIX, socket_name(host)))
            continue
        try:
            infos = socket.getaddrinfo(
                host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise BootError(
                f"{config.source('host')}: cannot resolve the host {host!r}: {reason}"
            ) from None
        candidates += [Place(host, family, address) for family, _, _, _, address in infos]
    places: list[Place] = []
    for index, place in enumerate(candidates):
        # Of two places that cover each other, the first one stays.
        is_repetition = any(place.covered_by(other) for other in candidates[:index])
        if not is_repetition and not any(
            place.covered_by(other) and not other.covered_by(place)
            for other in candidates[index + 1 :]
        ):
            places.append(place)
    return ResolvedAddresses(
        places, frozenset(place.host for place in candidates if place not in places)
    )
