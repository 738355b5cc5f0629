"""What can be measured: servers that are started for each round, and one that runs already."""

import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import echoserver
from clients.address import format_address, is_unix
from echoserver.config import option_name
from echoserver.system.processes import ParentDeathSignal
from loadtest.errors import LoadError
from loadtest.machine.pinning import pinned
from loadtest.machine.ports import free_port
from loadtest.peers import Peer
from loadtest.servers.commands import HOST, addressed
from loadtest.servers.interpreters import Interpreter

_START_TIMEOUT = 20.0  # seconds

_STOP_TIMEOUT = 10.0

_GLANCE = 0.01


@dataclass(frozen=True, slots=True)
class Running:
    """A server that accepts."""

    host: str
    port: int
    pid: int | None
    """Of the process that we have started; None where it was running already."""
    exit_code: Callable[[], int | None] | None = None
    """Tells how that process ended, as `subprocess.Popen.poll` does; None: it is not ours."""


class Target(Protocol):
    """A server that can be measured."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    @property
    def backend(self) -> str | None:
        """The backend that it is; None for another server."""

    @property
    def interpreter(self) -> "Interpreter | None":
        """The Python that runs it, where it is not this one."""

    @property
    def how_to_check(self) -> str:
        """The command that shows what is wrong with it; empty where there is none."""

    def started(self) -> AbstractContextManager[Running]:
        """Start it, and end it with the block."""


@dataclass(frozen=True, slots=True)
class BackendTarget:
    """A backend of ours, or a plugin."""

    backend: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the server."""
    label: str | None = None
    interpreter: Interpreter | None = None

    @property
    def how_to_check(self) -> str:
        """The command that grades it."""
        words = ["echoserver", "--port", "{port}", "--backend", self.backend]
        for name, value in self.settings.items():
            if name == "host":  # the grader says where to listen
                continue
            if isinstance(value, str) and value != "echo":
                words += [option_name(name), value]
            elif value is True:
                words.append(option_name(name))
        return f"to see why: echoload check -- {shlex.join(words)}"

    @property
    def name(self) -> str:
        """Its label, or else the backend's name."""
        if self.label:
            return self.label
        return self.backend + (f"@{self.interpreter.label}" if self.interpreter else "")

    @contextmanager
    def started(self) -> Iterator[Running]:
        """Start it, and drain it at the end of the block.

        Raises:
            LoadError: It did not end.
            echoserver.EchoServerError: It did not start.
        """
        settings = {"log_level": "warning", **self.settings}
        path = self.interpreter.path if self.interpreter else None
        server = echoserver.spawn(backend=self.backend, interpreter=path, **settings)
        try:
            with server:
                yield Running(server.host, server.port, server.pid, server.process.poll)
        except subprocess.TimeoutExpired as error:
            raise LoadError(
                f"the server of {self.name} did not end within {error.timeout:.0f} s of SIGTERM"
            ) from None


_NO_FOLDER = Path(os.devnull)


class BuildDirectory:
    """Where peers are compiled; gone at the end of the block.

    Where nothing can be written, as in a container that was started with --read-only, it is not a
    folder: whatever need not be compiled runs all the same.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        with suppress(OSError):
            self._folder = tempfile.TemporaryDirectory(prefix="echoload-")

    def __enter__(self) -> Path:
        return Path(self._folder.name) if self._folder else _NO_FOLDER

    def __exit__(self, *_: object) -> None:
        if self._folder:
            self._folder.cleanup()


def _scratch_file() -> IO[bytes]:
    """Return a file without a name; in memory where no folder can be written to."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return os.fdopen(os.memfd_create("output"), "w+b")


@dataclass(frozen=True, slots=True)
class PeerTarget:
    """A server that is none of ours; it always echoes."""

    peer: Peer
    folder: Path
    label: str | None = None
    backend: None = None
    interpreter: None = None
    how_to_check = ""

    @property
    def name(self) -> str:
        """Its label, or else the peer's name."""
        return self.label or self.peer.name

    @contextmanager
    def started(self) -> Iterator[Running]:
        """Start it, and kill it, with whatever it has started, at the end of the block.

        Raises:
            LoadError: It cannot be compiled, or does not accept.
        """
        try:
            command = self.peer.command(self.folder)
        except RuntimeError as error:
            raise LoadError(str(error)) from None
        with _running(self.name, [*command, "{port}"]) as running:
            yield running


@dataclass(frozen=True, slots=True)
class CommandTarget:
    """Any server that a command starts, in any language."""

    command: Sequence[str]
    """Its words; ``{host}`` and ``{port}`` stand for where to listen, and PORT is in the
    environment."""
    name: str
    backend: None = None
    interpreter: None = None

    @property
    def how_to_check(self) -> str:
        """The command that grades it."""
        return f"to see why: echoload check -- {shlex.join(self.command)}"

    @contextmanager
    def started(self) -> Iterator[Running]:
        """Start it, and kill it, with whatever it has started, at the end of the block.

        Raises:
            LoadError: It does not accept.
        """
        with _running(self.name, self.command) as running:
            yield running


@dataclass(frozen=True, slots=True)
class AddressTarget:
    """A server that runs already, and goes on."""

    host: str
    port: int
    name: str
    backend: None = None
    interpreter: None = None

    @property
    def how_to_check(self) -> str:
        """The command that grades it."""
        where = format_address(self.host, self.port)
        if is_unix(self.host):  # which the grader does not take
            return f"to see why: echoclient --ping {where}"
        return f"to see why: echoload check {where}"

    @contextmanager
    def started(self) -> Iterator[Running]:
        """Do nothing: the server is running already."""
        yield Running(self.host, self.port, None)


@contextmanager
def started_on(target: Target, cpus: frozenset[int]) -> Iterator[Running]:
    """Start a target confined to CPUs, and end it with the block."""
    with ExitStack() as stack:
        with pinned(cpus):  # what is started in it stays there
            running = stack.enter_context(target.started())
        yield running


@contextmanager
def _running(name: str, words: Sequence[str]) -> Iterator[Running]:
    """Run a command that serves, until the end of the block."""
    port = free_port()
    command = addressed(words, port)
    bond = ParentDeathSignal()
    with _scratch_file() as said:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PORT": str(port)},
                # However this process ends, its server does, too.
                preexec_fn=lambda: bond.arm(signal.SIGKILL),  # noqa: PLW1509 - no thread runs yet
            )
        except OSError as error:
            raise LoadError(f"cannot start {command[0]}: {error.strerror}") from None
        try:
            if not _accepts(process, port):
                said.seek(0)
                last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                because = f"; it said: {last[0]}" if last else ""
                raise LoadError(f"the server {name} does not accept on port {port}{because}")
            yield Running(HOST, port, process.pid, process.poll)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_STOP_TIMEOUT)


def _accepts(process: "subprocess.Popen[bytes]", port: int) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            socket.create_connection((HOST, port), 1).close()
            return True
        time.sleep(_GLANCE)
    return False
