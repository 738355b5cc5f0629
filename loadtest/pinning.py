"""Which CPUs the server and the client may use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pinning:
    """Sets of CPU numbers; the same set twice where nothing is pinned."""

    server: frozenset[int]
    client: frozenset[int]

    @property
    def split(self) -> bool:
        """Server and client have CPUs of their own."""
        return self.server.isdisjoint(self.client)


def choose(mode: str) -> Pinning:
    """Return the CPUs for `mode`: ``split`` (where there are two), or ``off``."""
    cpus = sorted(os.sched_getaffinity(0))
    if mode == "off" or len(cpus) == 1:
        return Pinning(frozenset(cpus), frozenset(cpus))
    # One core each, however many there are: what is compared is the models, and a model that
    # computes in one process has no use for a second core.
    return Pinning(frozenset(cpus[:1]), frozenset(cpus[1:2]))


@contextmanager
def pinned(cpus: frozenset[int]) -> Iterator[None]:
    """Confine this thread to `cpus` for a while; what it starts meanwhile stays confined."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
