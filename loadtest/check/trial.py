"""What a check is given: a server, clients that connect to it, content, and a time limit."""

import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from loadtest.check import expectation
from loadtest.check.client.connection import ClientConnection
from loadtest.check.evidence import Timeline
from loadtest.check.expectation import Expectation
from loadtest.check.failure import Failure, NotApplicable
from loadtest.check.submission.server import Server
from loadtest.check.submission.submission import Submission
from loadtest.servers.commands import HOST

STRETCH = 6  # times its patience is the most that a check may take in which things go on happening


@dataclass(slots=True)
class Session:
    """What all checks of a run share."""

    submission: Submission | None
    """How to start the server; None: it runs already, and is not ours to start or end."""
    address: tuple[str, int]
    expectation: Expectation
    seed: int
    clients: int
    concurrency: int | None
    """How many clients it is meant to serve at a time; None: everybody."""
    timeout: float
    """Seconds that a check waits for something that does not come."""
    deadline: float
    """When everything must be over, as `time.monotonic` counts."""
    server: Server | None = None
    greeting: bytes = b""
    """What it says to everybody who connects, though it should not."""
    failed: set[str] = field(default_factory=set)
    """Checks that it failed so far."""

    def start(self, port: int | None = None, nofile: int | None = None) -> Server:
        """Start a server, which is the present one from now on.

        Args:
            port: Where; None: on a port that is free.
            nofile: Most descriptors that it may have; None: as the submission says.

        Raises:
            loadtest.check.submission.NotStarted: It does not come up.
        """
        if self.submission is None:
            raise NotApplicable("the server was not started here")
        self.end()
        left = max(1.0, min(self.timeout, self.deadline - time.monotonic()))
        self.server = self.submission.start(left, port, nofile)
        self.address = (HOST, self.server.port)
        return self.server

    def end(self) -> None:
        """End the present server, where it is ours."""
        if self.server is not None:
            server, self.server = self.server, None
            server.end()


@dataclass(slots=True)
class CheckContext:
    """One check against one server."""

    session: Session
    id: str
    timeline: Timeline = field(default_factory=Timeline)
    opened: list[socket.socket] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    never_ends_stream: bool = False
    """A half-close was not answered by an end of the stream."""
    stream: random.Random = field(init=False)
    """Every random choice comes from here."""

    def __post_init__(self) -> None:
        self.stream = random.Random(f"{self.session.seed}:{self.id}")

    @property
    def patience(self) -> float:
        """Seconds to wait for something that does not come."""
        return self.session.timeout

    @property
    def left(self) -> float:
        """Seconds until this check must be over."""
        ends = min(self.begun + STRETCH * self.session.timeout, self.session.deadline)
        return ends - time.monotonic()

    @property
    def address(self) -> tuple[str, int]:
        """The address of the server."""
        return self.session.address

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of the server's address."""
        return socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET

    @property
    def greeting(self) -> bytes:
        """What comes before everything else, though nothing should."""
        return self.session.greeting

    @property
    def server(self) -> Server:
        """The process; only for checks that say so."""
        if self.session.server is None:
            raise NotApplicable("it needs the server's process")
        return self.session.server

    @property
    def elsewhere(self) -> str:
        """Where its process listens, if that is ours to look at."""
        return self.session.server.elsewhere() if self.session.server is not None else ""

    @property
    def has_process(self) -> bool:
        """The server's process is ours to look at."""
        return self.session.server is not None

    def known_to_break(self, id: str) -> bool:  # noqa: A002 - as everywhere
        """Tell whether what another check does is known to harm this server."""
        return id in self.session.failed

    @property
    def by_line(self) -> bool:
        """Only complete lines are answered."""
        return self.session.expectation.by_line

    def connect(self, name: str = "A", buffer: int | None = None) -> ClientConnection:
        """Return a new client's connection."""
        return ClientConnection.connect(self, name, buffer)

    def answer(self, question: bytes) -> bytes:
        """Return what is owed for `question`."""
        return self.session.expectation.answer(question)

    def text(self, size: int) -> bytes:
        """Return something to send; other bytes at each call."""
        return expectation.text(self.stream, size)

    def at_once(self, wanted: int, least: int = 1) -> int:
        """Return how many of so many clients this server is meant to serve at a time.

        Raises:
            NotApplicable: Fewer than the least with which the check makes sense.
        """
        bound = self.session.concurrency
        served = wanted if bound is None else min(wanted, bound)
        if served < least:
            raise NotApplicable(
                f"it needs {least} clients at a time, and --concurrency {bound} was declared"
            )
        return served

    def eventually(self, condition: Callable[[], object]) -> bool:
        """Ask until `condition` holds; tell whether it did while there was patience."""
        deadline = time.monotonic() + min(self.patience, self.left)
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Close every connection of this check."""
        while self.opened:
            self.opened.pop().close()

    @staticmethod
    def fail(message: str) -> NoReturn:
        """Fail the check."""
        raise Failure(message)


def name_of(number: int) -> str:
    """Return what the timeline calls client `number`, from 0: A, B, ... Z, 27, 28, ..."""
    letters: Sequence[str] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[number] if number < len(letters) else str(number + 1)
