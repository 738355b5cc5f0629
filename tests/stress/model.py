"""What a fault is, which there are, and in which cells of the matrix each is tried."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import echoserver
from tests.conftest import BUILTIN

if TYPE_CHECKING:
    from tests.stress.arena import Arena


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and what a server must make of it."""

    number: int
    title: str
    run: Callable[["Arena"], str]
    """Brings it about, asserts what is particular to it, and returns a figure for the table."""
    control: Mapping[str, Any]
    """Settings of a server that has the defect: with these, the case must fail."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the server."""
    starts: bool = True
    """The server is started before; False: the case starts what it needs itself."""
    canary: bool = True
    """A client that connected first is served within a second all along."""
    settles: bool = True
    """Descriptors, threads, children and memory return to where they were."""
    keeps: int = 24
    """MiB that the server may have more afterwards, which Python and the allocator keep."""
    counts: Mapping[str, int | None] = field(default_factory=dict)
    """Counters of the ``stopped`` line and what they must be; None: more than 0."""
    only: Callable[[str], bool] = lambda _backend: True
    """In which backends it can happen at all."""
    workers: bool | None = None
    """True: it is about workers, and needs two; False: about a server without."""
    tls: bool = True
    """It is another thing over TLS."""
    fast: bool = False
    """A small form of it is in the default tests."""
    namespace: bool = False
    """It takes a network of its own."""
    alone: tuple[str, ...] = ()
    """Backends with which, at full size, it takes all of a machine of two cores."""
    needs: tuple[str, ...] = ()
    """Programs without which it is skipped."""
    timeout: float = 120.0
    """Seconds that it may take at full size."""

    @property
    def id(self) -> str:
        """How tests call it."""
        return f"{self.number:02}"


ITS_OWN: Mapping[str, Any] = {"starts": False, "canary": False, "settles": False}
"""Of a case that starts its servers itself, and ends them."""

FAULTS: dict[int, Fault] = {}
"""All faults by number; `every` has them."""


def fault(
    number: int, title: str, **about: Any
) -> Callable[[Callable[["Arena"], str]], Callable[["Arena"], str]]:
    """Return what puts a function into the list; see `Fault`."""

    def add(run: Callable[["Arena"], str]) -> Callable[["Arena"], str]:
        assert number not in FAULTS
        FAULTS[number] = Fault(number, title, run, **about)
        return run

    return add


def every() -> list[Fault]:
    """Return all faults in order."""
    from tests.stress import access, limits, lives, network, setting_up, streams  # noqa: F401 - they fill FAULTS

    return [FAULTS[number] for number in sorted(FAULTS)]


@dataclass(frozen=True)
class Cell:
    """One case: a fault, and to which server it happens."""

    fault: Fault
    backend: str
    workers: int | None
    tls: bool

    @property
    def id(self) -> str:
        """How tests call it."""
        layout = "-2workers" if self.workers else ""
        return f"{self.fault.id}-{self.backend}{layout}{'-tls' if self.tls else ''}"

    @property
    def central(self) -> bool:
        """The one that is tried at full size."""
        return not self.tls and (self.workers is None or self.fault.workers is True)

    @property
    def room(self) -> int | None:
        """How many clients are served at a time; None: no bound."""
        each = echoserver.load_backend(self.backend).concurrency(echoserver.Config())
        return each and each * (self.workers or 1)


def cells() -> Iterator[Cell]:
    """Yield the whole matrix."""
    for one in every():
        for backend in filter(one.only, BUILTIN):
            for workers in (None, 2):
                if one.workers is not None and one.workers != bool(workers):
                    continue
                for tls in (False, True) if one.tls else (False,):
                    yield Cell(one, backend, workers, tls)
