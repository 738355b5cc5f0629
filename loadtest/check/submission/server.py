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
from echoserver.terminal import printable
from loadtest.check.failure import Failure
from loadtest.check.submission import keeper, observed
from loadtest.check.submission.commands import explain_start
from loadtest.check.submission.keeper import Order
from loadtest.machine.processes import signal_name
from loadtest.machine.sockets import listens
from loadtest.servers.commands import HOST

_POLL_INTERVAL = 0.01  # seconds

_KEEPER_PATIENCE = 30.0

_LAST_LINES = 12

_LONGEST_LINE = 200
_MIB = 1 << 20


class CannotGrade(Exception):  # noqa: N818 - an outcome of a check, not an error of ours
    """The grader cannot do its work here; the message is a sentence."""


class NotStarted(Exception):  # noqa: N818 - an outcome of a check, not an error of ours
    """The server does not come up; the message is a sentence."""

    def __init__(self, message: str, output: list[str], hint: str = "") -> None:
        super().__init__(message)
        self.output = output
        self.hint = hint
        """Where to look, where that is known better than the check knows it."""


_PURPOSE = "Nothing else can be checked on a server that does not start."


def start_failure(problem: NotStarted, before: str = "") -> Failure:
    """Return the failure for a server that does not come up."""
    failure = Failure(f"{before}{problem}")
    failure.output = problem.output
    if problem.hint:
        failure.instead = _PURPOSE, problem.hint
    return failure


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server; None: no limit of its own."""

    memory: int | None = None
    """Bytes of all its processes together."""
    nofile: int | None = None
    nproc: int | None = None
    user: str | None = None

    def check(self) -> None:
        """Reject limits that cannot be applied here.

        Raises:
            ValueError: The message is a sentence.
        """
        if self.user is None:
            return
        try:
            uid = pwd.getpwnam(self.user).pw_uid
        except KeyError:
            raise ValueError(f"--user: there is no user {self.user} on this machine") from None
        if uid != os.geteuid() and os.geteuid() != 0:
            raise ValueError(f"--user: only root can run a server as {self.user}")


class Server:
    """A server process, and everything that it starts, which end with the block.

    Raises:
        CannotGrade: The grader cannot start it.
        NotStarted: The command cannot be run.
    """

    def __init__(self, words: Sequence[str], port: int, limits: Limits) -> None:
        self.port = port
        self._partial_input = bytearray()
        self._status: int | None = None
        self._excess_bytes: int | None = None
        self._limits = limits
        self._is_ended = False
        self._is_keeper_lost = False
        self._control, keeper_socket = socket.socketpair()
        environment = {**os.environ, "HOST": HOST, "PORT": str(port), "PYTHONUNBUFFERED": "1"}
        order = Order(
            list(words), environment, limits.memory, limits.nofile, limits.nproc, limits.user
        )
        keeper.become_subreaper()  # should the server kill its keeper
        with keeper_socket:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(keeper_socket.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[keeper_socket.fileno()],
                start_new_session=True,
            )
        self._control.sendall(order.as_line())
        first = self._next_event(_KEEPER_PATIENCE)
        if first is None or "started" not in first:
            self.end()
            if first is None:
                raise CannotGrade("the process that was to keep the server did not start")
            reason, hint = explain_start(words[0], first.get("errno"))
            raise NotStarted(f"{first['failed']}{reason}", [], hint)
        self.pid = int(first["started"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def status(self) -> int | None:
        """The exit status of the process that was started, as in `subprocess`; None: it runs."""
        while not self._is_keeper_lost and self._next_event(0) is not None:
            pass
        return self._status

    @property
    def has_killed_keeper(self) -> bool:
        """The server has killed its keeper."""
        return self.status is not None and self._is_keeper_lost

    @property
    def death(self) -> str:
        """How the process ended, as a part of a sentence; empty: it runs."""
        status = self.status
        if self._is_keeper_lost:
            return "killed the process that watches over it"
        if self._excess_bytes is not None and self._limits.memory:
            used, most = self._excess_bytes / _MIB, self._limits.memory / _MIB
            return f"was killed for using {used:,.0f} MiB of memory where {most:,.0f} are allowed"
        return "" if status is None else describe_exit(status)

    def await_exit(self, seconds: float) -> int | None:
        """Wait until the process ends; return its status, or None if it runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while (
            not self._is_keeper_lost
            and self.status is None
            and (seconds_left := deadline - time.monotonic()) > 0
        ):
            self._next_event(seconds_left)
        return self._status

    def await_listening(self, patience: float) -> None:
        """Wait until the server listens on its port.

        This does not connect, because the server could take that for its first client.

        Raises:
            NotStarted: The server ended before, or does not listen in time.
        """
        deadline = time.monotonic() + patience
        while not listens(self.port):
            if self.status is not None and not listens(self.port):
                raise NotStarted(f"it {self.death} before it accepted a client", self.output())
            if time.monotonic() > deadline:
                raise NotStarted(
                    f"within {patience:.0f} s nothing listened on {HOST}:{self.port}{self._but()}",
                    self.output(),
                )
            time.sleep(_POLL_INTERVAL)

    def _but(self) -> str:
        """Return what the server does instead of listening on its port, as far as that is seen."""
        if elsewhere := self.elsewhere():
            return f"; it listens on {elsewhere} instead (for a fixed port, give --port)"
        if observed.reads_standard_input(self.tree()):
            return (
                "; it waits for something on its standard input, where nothing comes: a server "
                "that is graded must start by itself"
            )
        return ""

    def elsewhere(self) -> str:
        """Return the addresses that the server's processes listen on."""
        addresses = set()
        for process in self.tree():
            try:
                sockets = process.net_connections("tcp")
            except (psutil.Error, OSError):
                continue
            addresses |= {
                format_address(one.laddr.ip, one.laddr.port)
                for one in sockets
                if one.status == psutil.CONN_LISTEN
            }
        return " and ".join(sorted(addresses))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        self._send_request(f"signal {int(number)}")

    def tree(self) -> list[psutil.Process]:
        """Return all processes of the server, including orphans and zombies."""
        return observed.below(self._keeper.pid)

    def output(self) -> list[str]:
        """Return the last lines that the server printed."""
        self._send_request("output")
        deadline = time.monotonic() + _KEEPER_PATIENCE
        while not self._is_keeper_lost and (
            event := self._next_event(max(0.0, deadline - time.monotonic()))
        ):
            if "output" in event:
                lines = str(event["output"]).splitlines()
                return [_printable(line) for line in lines[-_LAST_LINES:]]
        return []

    def state(self) -> list[str]:
        """Return lines on the server's processes, and on the kernel's view of its sockets."""
        death = self.death
        first = [f"the process that was started {death}"] if death else []
        return first + observed.describe(self.tree()) + observed.sockets(self.port)

    def end(self) -> None:
        """Kill the server and everything that it started; return when all of it is gone."""
        if self._is_ended:
            return
        self._is_ended = True
        self._control.close()
        try:
            self._keeper.wait(_KEEPER_PATIENCE)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
            raise CannotGrade("something that the server started cannot be killed") from None
        if self._keeper.returncode != 0:
            keeper.end_all()

    def _send_request(self, request: str) -> None:
        try:
            self._control.sendall(request.encode() + b"\n")
        except OSError:
            self._note_keeper_loss()

    def _note_keeper_loss(self) -> None:
        """Note that the keeper is gone, which only the server can have killed."""
        self._is_keeper_lost = True
        if self._status is None:
            self._status = -int(signal.SIGKILL)

    def _next_event(self, seconds: float) -> dict[str, Any] | None:
        """Return the next event from the keeper; None if there is none within `seconds`."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._partial_input and not self._is_keeper_lost:
            timeout = max(0.0, deadline - time.monotonic())
            if not select.select([self._control], [], [], timeout)[0]:
                return None
            try:
                piece = self._control.recv(1 << 20)
            except ConnectionError:
                piece = b""
            if not piece:
                self._note_keeper_loss()
                return None
            self._partial_input += piece
        if self._is_keeper_lost:
            return None
        line, _, rest = bytes(self._partial_input).partition(b"\n")
        self._partial_input = bytearray(rest)
        event: dict[str, Any] = json.loads(line)
        if "exited" in event:
            self._status = int(event["exited"])
        if "heavy" in event:
            self._excess_bytes = int(event["heavy"])
            self._status = self._status if self._status is not None else -int(signal.SIGKILL)
        return event


def describe_exit(status: int) -> str:
    """Return how a process ended: ``ended with exit code 1``, ``was killed by SIGSEGV``."""
    if status >= 0:
        return f"ended with exit code {status}"
    return f"was killed by {signal_name(-status)}"


def _printable(line: str) -> str:
    """Return a line of the server's output in a form that can be shown anywhere."""
    text = printable(line.expandtabs(4))
    return text if len(text) <= _LONGEST_LINE else text[:_LONGEST_LINE] + "..."
