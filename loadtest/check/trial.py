"""The context of a check: a server, clients that connect to it, content, and a time limit."""

import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from clients.address import SocketAddress
from loadtest.check import expectation
from loadtest.check.client.connection import ClientConnection
from loadtest.check.evidence import Timeline
from loadtest.check.expectation import Expectation
from loadtest.check.failure import Failure, NotApplicable
from loadtest.check.submission.server import Server
from loadtest.check.submission.submission import Submission
from loadtest.servers.commands import HOST

STRETCH = 6  # times the patience: the longest that a check may take, while bytes go on coming


@dataclass(slots=True)
class Session:
    """What all checks of a run share."""

    submission: Submission | None
    """How to start the server; None: it runs already, so we do not start or end it."""
    address: SocketAddress
    expectation: Expectation
    seed: int
    clients: int
    concurrency: int | None
    """How many clients it is meant to serve at a time; None: no limit."""
    timeout: float
    """Seconds that a check waits for something that does not come."""
    deadline: float
    """When everything must be over, as `time.monotonic` counts."""
    server: Server | None = None
    greeting: bytes = b""
    """What the server sends to every client that connects, though it should not."""
    first_reply: bytes = b""
    """What the very first client got before it left."""
    failed_checks: set[str] = field(default_factory=set)
    """The checks that the server has failed so far."""

    def start(self, port: int | None = None, nofile: int | None = None) -> Server:
        """Start a server, which replaces the present one.

        Args:
            port: The port to listen on; None: a free one.
            nofile: The limit of its descriptors; None: the limit of the submission.

        Raises:
            loadtest.check.submission.NotStarted: The server does not come up.
        """
        if self.submission is None:
            raise NotApplicable("the server was not started here")
        self.end()
        seconds = max(1.0, min(self.timeout, self.deadline - time.monotonic()))
        self.server = self.submission.start(seconds, port, nofile)
        self.address = (HOST, self.server.port)
        return self.server

    def end(self) -> None:
        """End the present server, if we have started it."""
        if self.server is not None:
            server, self.server = self.server, None
            server.end()


@dataclass(slots=True)
class CheckContext:
    """One check against one server."""

    session: Session
    id: str
    timeline: Timeline = field(default_factory=Timeline)
    open_sockets: list[socket.socket] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)
    never_ends_stream: bool = False
    """The server did not end the stream after a half-close."""
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
        end = min(self.start + STRETCH * self.session.timeout, self.session.deadline)
        return end - time.monotonic()

    @property
    def address(self) -> SocketAddress:
        """The address of the server."""
        return self.session.address

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of the server's address."""
        return socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET

    @property
    def greeting(self) -> bytes:
        """What the server sends before everything else, though it should not."""
        return self.session.greeting

    @property
    def server(self) -> Server:
        """The process of the server; only for checks that say so."""
        if self.session.server is None:
            raise NotApplicable("it needs the server's process")
        return self.session.server

    @property
    def elsewhere(self) -> str:
        """The addresses on which the server's process listens, if we may look at it."""
        return self.session.server.elsewhere() if self.session.server is not None else ""

    @property
    def has_process(self) -> bool:
        """We have started the server, so its process can be looked at."""
        return self.session.server is not None

    def known_to_break(self, id: str) -> bool:  # noqa: A002 - as everywhere
        """Tell whether what another check does is known to harm this server."""
        return id in self.session.failed_checks

    @property
    def by_line(self) -> bool:
        """Only complete lines are owed an answer."""
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

    def at_once(self, clients: int, least: int = 1) -> int:
        """Return how many of `clients` this server is meant to serve at a time.

        Raises:
            NotApplicable: Fewer than the least with which the check makes sense.
        """
        bound = self.session.concurrency
        simultaneous = clients if bound is None else min(clients, bound)
        if simultaneous < least:
            raise NotApplicable(
                f"it needs {least} clients at a time, and --concurrency {bound} was declared"
            )
        return simultaneous

    def eventually(self, condition: Callable[[], object]) -> bool:
        """Wait until `condition` holds; tell whether it did before the patience ran out."""
        deadline = time.monotonic() + min(self.patience, self.left)
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Close every connection of this check."""
        while self.open_sockets:
            self.open_sockets.pop().close()

    @staticmethod
    def fail(message: str) -> NoReturn:
        """Fail the check."""
        raise Failure(message)


def name_of(number: int) -> str:
    """Return what the timeline calls client `number`, from 0: A, B, ... Z, 27, 28, ..."""
    letters: Sequence[str] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[number] if number < len(letters) else str(number + 1)
