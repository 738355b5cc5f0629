"""The addresses that hosts stand for, before anything listens there."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from echoserver.addresses import is_unix, socket_name
from echoserver.config import Config
from echoserver.errors import BootError
from echoserver.system.systemd import inherited


@dataclass(frozen=True, slots=True)
class Place:
    """One address to listen on."""

    host: str
    """As it was typed, which may be a name with several addresses."""
    family: int
    address: Any
    """As bind(2) takes it, with any port."""

    def covered_by(self, other: "Place") -> bool:
        """Tell whether a socket that listens on another one listens on this one, too."""
        if socket.AF_UNIX in {self.family, other.family}:
            return bool(self.address == other.address)
        if other.address[0] == "::":  # which means every address, of both families
            return True
        if self.family != other.family:
            return False
        wide, narrow = other.address[0], self.address[0]
        return bool(wide == narrow or (wide == "0.0.0.0" and narrow != "::"))

    def at(self, port: int) -> Any:
        """Return its address with a port."""
        if self.family == socket.AF_UNIX:
            return self.address
        host, _, *scope = self.address
        return (host, port, *scope)


@dataclass(frozen=True, slots=True)
class ResolvedAddresses:
    """Where a server listens, before it does."""

    places: Sequence[Place] = ()
    """Each is there once, however many hosts name it."""
    included: frozenset[str] = frozenset()
    """The hosts of which a part is listened on for another host."""
    handed_over: Sequence[int] = ()
    """The descriptors of listening sockets that a service manager has made; then there is nothing
    to resolve."""


def resolve(config: Config) -> ResolvedAddresses:
    """Return the addresses of all hosts of `config`.

    A name server that does not answer keeps this waiting for longer than a person does, and no
    handler of a signal runs meanwhile (getaddrinfo(3) is C); so it comes before there are any, and
    a signal ends the process.

    Raises:
        BootError: A host cannot be resolved, or what was handed over is not usable.
    """
    if handed_over := inherited():
        return ResolvedAddresses(handed_over=handed_over)
    found: list[Place] = []
    for host in config.host:
        if is_unix(host):
            found.append(Place(host, socket.AF_UNIX, socket_name(host)))
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
        found += [Place(host, family, address) for family, _, _, _, address in infos]
    kept: list[Place] = []
    for index, place in enumerate(found):
        # Of two that cover each other, the first.
        before = any(place.covered_by(other) for other in found[:index])
        if not before and not any(
            place.covered_by(other) and not other.covered_by(place) for other in found[index + 1 :]
        ):
            kept.append(place)
    return ResolvedAddresses(kept, frozenset(place.host for place in found if place not in kept))
