"""A server that was started, with everything that it starts."""

import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import psutil

from clients.address import format_address
from loadtest.check.failure import Failure
from loadtest.check.submission import keeper, observed
from loadtest.check.submission.keeper import Order
from loadtest.machine.processes import signal_name
from loadtest.machine.sockets import accept_queue
from loadtest.servers.commands import HOST

_GLANCE = 0.01  # seconds

_KEEPER_PATIENCE = 30.0

_LAST_LINES = 12

_LONGEST_LINE = 200
_MIB = 1 << 20


class CannotGrade(Exception):  # noqa: N818 - an outcome of a check, no error of ours
    """The grader cannot do its work here; the message is a sentence."""


class NotStarted(Exception):  # noqa: N818 - an outcome of a check, no error of ours
    """The server does not come up; the message is a sentence."""

    def __init__(self, message: str, output: list[str]) -> None:
        super().__init__(message)
        self.output = output


def not_started(problem: NotStarted, before: str = "") -> Failure:
    """Return the failure that a server that does not come up is."""
    failure = Failure(f"{before}{problem}")
    failure.output = problem.output
    return failure


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server may use; None: no limit of its own."""

    memory: int | None = None
    """Bytes of all its processes together."""
    nofile: int | None = None
    nproc: int | None = None
    user: str | None = None

    def check(self) -> None:
        """Complain about what cannot be had.

        Raises:
            ValueError: The message is a sentence.
        """
        if self.user is None:
            return
        try:
            wanted = pwd.getpwnam(self.user).pw_uid
        except KeyError:
            raise ValueError(f"--user: there is no user {self.user} on this machine") from None
        if wanted != os.geteuid() and os.geteuid() != 0:
            raise ValueError(f"--user: only root can run a server as {self.user}")


class Server:
    """A process that was started, and everything that it starts; gone at the end of the block.

    Raises:
        CannotGrade: The grader cannot start it.
        NotStarted: The command cannot be run.
    """

    def __init__(self, words: Sequence[str], port: int, limits: Limits) -> None:
        self.port = port
        self._rest = bytearray()
        self._status: int | None = None
        self._heavy: int | None = None
        self._limits = limits
        self._ended = False
        self._lost = False
        self._control, theirs = socket.socketpair()
        environment = {**os.environ, "HOST": HOST, "PORT": str(port), "PYTHONUNBUFFERED": "1"}
        order = Order(
            list(words), environment, limits.memory, limits.nofile, limits.nproc, limits.user
        )
        keeper.become_subreaper()  # should the server kill its keeper
        with theirs:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._control.sendall(order.as_line())
        first = self._next(_KEEPER_PATIENCE)
        if first is None or "started" not in first:
            self.end()
            if first is None:
                raise CannotGrade("the process that was to keep the server did not start")
            raise NotStarted(first["failed"], [])
        self.pid = int(first["started"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def status(self) -> int | None:
        """How the process that was started ended, as `subprocess` has it; None: it runs."""
        while not self._lost and self._next(0) is not None:
            pass
        return self._status

    @property
    def lost(self) -> bool:
        """It has killed its keeper."""
        return self.status is not None and self._lost

    @property
    def death(self) -> str:
        """How it ended, as a part of a sentence; nothing where it runs."""
        status = self.status
        if self._lost:
            return "killed the process that watches over it"
        if self._heavy is not None and self._limits.memory:
            used, most = self._heavy / _MIB, self._limits.memory / _MIB
            return f"was killed for using {used:,.0f} MiB of memory where {most:,.0f} are allowed"
        return "" if status is None else ended(status)

    def await_exit(self, seconds: float) -> int | None:
        """Return how the process ended; None where it runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while not self._lost and self.status is None and (left := deadline - time.monotonic()) > 0:
            self._next(left)
        return self._status

    def await_listening(self, patience: float) -> None:
        """Return when it listens on its port.

        Without connecting, which a server could take for its first client.

        Raises:
            NotStarted: It ended before, or does not listen in time.
        """
        deadline = time.monotonic() + patience
        while not listens(self.port):
            if self.status is not None and not listens(self.port):
                raise NotStarted(f"it {self.death} before it accepted a client", self.output())
            if time.monotonic() > deadline:
                elsewhere = self.elsewhere()
                but = f"; it listens on {elsewhere} instead" if elsewhere else ""
                raise NotStarted(
                    f"within {patience:.0f} s nothing listened on {HOST}:{self.port}{but}",
                    self.output(),
                )
            time.sleep(_GLANCE)

    def elsewhere(self) -> str:
        """Return the addresses that its processes listen on."""
        found = set()
        for process in self.tree():
            try:
                sockets = process.net_connections("tcp")
            except (psutil.Error, OSError):
                continue
            found |= {
                format_address(one.laddr.ip, one.laddr.port)
                for one in sockets
                if one.status == psutil.CONN_LISTEN
            }
        return " and ".join(sorted(found))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        self._ask(f"signal {int(number)}")

    def tree(self) -> list[psutil.Process]:
        """Return its processes, whatever it left behind included; zombies, too."""
        return observed.below(self._keeper.pid)

    def output(self) -> list[str]:
        """Return the last lines that it printed."""
        self._ask("output")
        deadline = time.monotonic() + _KEEPER_PATIENCE
        while not self._lost and (event := self._next(max(0.0, deadline - time.monotonic()))):
            if "output" in event:
                lines = str(event["output"]).splitlines()
                return [_clean(line) for line in lines[-_LAST_LINES:]]
        return []

    def state(self) -> list[str]:
        """Say what its processes are, and what the kernel knows of its sockets."""
        death = self.death
        first = [f"the process that was started {death}"] if death else []
        return first + observed.describe(self.tree()) + observed.sockets(self.port)

    def end(self) -> None:
        """Kill it, and everything that it started; return when all is gone."""
        if self._ended:
            return
        self._ended = True
        self._control.close()
        try:
            self._keeper.wait(_KEEPER_PATIENCE)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
            raise CannotGrade("something that the server started cannot be killed") from None
        if self._keeper.returncode != 0:
            keeper.end_all()

    def _ask(self, words: str) -> None:
        try:
            self._control.sendall(words.encode() + b"\n")
        except OSError:
            self._lose()

    def _lose(self) -> None:
        """Note that the keeper is gone, which only somebody else can have ended."""
        self._lost = True
        if self._status is None:
            self._status = -int(signal.SIGKILL)

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """Return what happened next, if anything within so many seconds."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest and not self._lost:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._control], [], [], left)[0]:
                return None
            try:
                piece = self._control.recv(1 << 20)
            except ConnectionError:
                piece = b""
            if not piece:
                self._lose()
                return None
            self._rest += piece
        if self._lost:
            return None
        line, _, rest = bytes(self._rest).partition(b"\n")
        self._rest = bytearray(rest)
        event: dict[str, Any] = json.loads(line)
        if "exited" in event:
            self._status = int(event["exited"])
        if "heavy" in event:
            self._heavy = int(event["heavy"])
            self._status = self._status if self._status is not None else -int(signal.SIGKILL)
        return event


def ended(status: int) -> str:
    """Say how a process ended: ``ended with exit code 1``, ``was killed by SIGSEGV``."""
    if status >= 0:
        return f"ended with exit code {status}"
    return f"was killed by {signal_name(-status)}"


def listens(port: int) -> bool:
    """Tell whether something on this machine listens on a TCP port."""
    return accept_queue(port) is not None


def _clean(line: str) -> str:
    """Return a line of a stranger's output as it can be shown anywhere."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line.expandtabs(4))
    return shown if len(shown) <= _LONGEST_LINE else shown[:_LONGEST_LINE] + "..."
