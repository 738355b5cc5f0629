"""Which CPUs the server and the client may use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from echoserver.system.cpus import parse_affinity


@dataclass(frozen=True, slots=True)
class Pinning:
    """Sets of CPU numbers; the same set twice where nothing is pinned."""

    server: frozenset[int]
    client: frozenset[int]

    @property
    def split(self) -> bool:
        """Server and client have CPUs of their own."""
        return self.server.isdisjoint(self.client)


def choose(mode: str, processes: int = 1) -> Pinning:
    """Return the CPUs for `mode`: ``split``, ``off``, or ``SERVERCPUS:CLIENTCPUS``.

    Args:
        mode: ``split`` gives the server one core, and each of the client's processes another, as
            far as there are enough; ``0:1-3`` gives exactly those.
        processes: How many processes the client has.

    Raises:
        ValueError: The mode is not one of these; the message completes "--pin must be ...".
    """
    cpus = sorted(os.sched_getaffinity(0))
    if mode == "off" or (mode == "split" and len(cpus) == 1):
        return Pinning(frozenset(cpus), frozenset(cpus))
    if mode == "split":
        # One core for the server, however many there are: what is compared is the models, and a
        # model that computes in one process has no use for a second one.
        return Pinning(frozenset(cpus[:1]), frozenset(cpus[1 : 1 + processes]))
    server, colon, client = mode.partition(":")
    try:
        parts = [parse_affinity(part) for part in (server, client) if colon]
    except ValueError:
        parts = []
    sets = [frozenset(part) for part in parts if not isinstance(part, str)]
    if len(sets) != 2:  # noqa: PLR2004 - the server's and the client's
        raise ValueError("split, off, or SERVERCPUS:CLIENTCPUS such as 0:1-3")
    if foreign := sorted(frozenset.union(*sets) - frozenset(cpus)):
        raise ValueError(f"CPUs that this process may use ({_join(cpus)}), not {foreign[0]}")
    return Pinning(*sets)


def _join(cpus: list[int]) -> str:
    return ", ".join(map(str, cpus))


@contextmanager
def affinity(cpus: frozenset[int]) -> Iterator[None]:
    """Confine this thread to `cpus` within the block; processes started in it stay confined."""
    previous = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, previous)
