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
from loadtest.machine.pinning import affinity
from loadtest.machine.ports import free_port
from loadtest.machine.sockets import listens
from loadtest.peers import Peer
from loadtest.servers.commands import HOST, fill_in_address
from loadtest.servers.interpreters import Interpreter

_START_TIMEOUT = 20.0  # seconds

_STOP_TIMEOUT = 10.0

_POLL_INTERVAL = 0.01


@dataclass(frozen=True, slots=True)
class RunningServer:
    """The address and the process of a server that accepts connections."""

    host: str
    port: int
    pid: int | None
    """Of the process that we have started; None: the server was running already."""
    exit_code: Callable[[], int | None] | None = None
    """Returns how that process ended, as `subprocess.Popen.poll` does; None: it is not ours."""


class Target(Protocol):
    """A server that can be measured."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    @property
    def backend(self) -> str | None:
        """The name of its backend; None: it is another server."""

    @property
    def interpreter(self) -> "Interpreter | None":
        """The Python that runs it; None: this one."""

    @property
    def how_to_check(self) -> str:
        """The advice that names a command to diagnose it; empty: there is none."""

    def run(self) -> AbstractContextManager[RunningServer]:
        """Start the server, and end it at the end of the block."""


@dataclass(frozen=True, slots=True)
class BackendTarget:
    """A server of this project, with one of its backends or a plugin."""

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
            if name == "host":  # the grader chooses the address
                continue
            if isinstance(value, str) and value != "echo":
                words += [option_name(name), value]
            elif value is True:
                words.append(option_name(name))
        return f"to see why: echoload check -- {shlex.join(words)}"

    @property
    def name(self) -> str:
        """The label, or else the name of the backend."""
        if self.label:
            return self.label
        return self.backend + (f"@{self.interpreter.label}" if self.interpreter else "")

    @contextmanager
    def run(self) -> Iterator[RunningServer]:
        """Start the server, and drain it at the end of the block.

        Raises:
            LoadError: The server did not end.
            echoserver.EchoServerError: The server did not start.
        """
        settings = {"log_level": "warning", **self.settings}
        path = self.interpreter.path if self.interpreter else None
        server = echoserver.spawn(backend=self.backend, interpreter=path, **settings)
        try:
            with server:
                yield RunningServer(server.host, server.port, server.pid, server.process.poll)
        except subprocess.TimeoutExpired as error:
            raise LoadError(
                f"the server of {self.name} did not end within {error.timeout:.0f} s of SIGTERM"
            ) from None


_NO_FOLDER = Path(os.devnull)


class BuildDirectory:
    """The directory in which peers are compiled; it is removed at the end of the block.

    If no directory can be written to, as in a container with --read-only, the path is not a folder:
    targets that need no compiling run all the same.
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
    """Return a temporary file without a name; in memory if no folder can be written to."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return os.fdopen(os.memfd_create("output"), "w+b")


@dataclass(frozen=True, slots=True)
class PeerTarget:
    """A server that is not ours, of `loadtest.peers`; it always echoes."""

    peer: Peer
    folder: Path
    label: str | None = None
    backend: None = None
    interpreter: None = None
    how_to_check = ""

    @property
    def name(self) -> str:
        """The label, or else the name of the peer."""
        return self.label or self.peer.name

    @contextmanager
    def run(self) -> Iterator[RunningServer]:
        """Start the server; at the end of the block, kill it and everything that it started.

        Raises:
            LoadError: The server cannot be compiled, or does not accept.
        """
        try:
            command = self.peer.command(self.folder)
        except RuntimeError as error:
            raise LoadError(str(error)) from None
        with _run_command(self.name, [*command, "{port}"]) as server:
            yield server


@dataclass(frozen=True, slots=True)
class CommandTarget:
    """Any server that a command starts, in any language."""

    command: Sequence[str]
    """The words of the command; ``{host}`` and ``{port}`` stand for the address to listen on, and
    PORT is in the environment."""
    name: str
    port: int | None = None
    """The port that it listens on whatever it is told; None: it is told a free one."""
    backend: None = None
    interpreter: None = None

    @property
    def how_to_check(self) -> str:
        """The command that grades it."""
        port = "" if self.port is None else f"--port {self.port} "
        return f"to see why: echoload check {port}-- {shlex.join(self.command)}"

    @contextmanager
    def run(self) -> Iterator[RunningServer]:
        """Start the server; at the end of the block, kill it and everything that it started.

        Raises:
            LoadError: The server does not accept.
        """
        with _run_command(self.name, self.command, self.port) as server:
            yield server


@dataclass(frozen=True, slots=True)
class AddressTarget:
    """A server that runs already, and continues to run."""

    host: str
    port: int
    name: str
    backend: None = None
    interpreter: None = None

    @property
    def how_to_check(self) -> str:
        """The command that grades it."""
        address = format_address(self.host, self.port)
        if is_unix(self.host):  # the grader accepts no UNIX sockets
            return f"to see why: echoclient --ping {address}"
        return f"to see why: echoload check {address}"

    @contextmanager
    def run(self) -> Iterator[RunningServer]:
        """Do nothing: the server is running already."""
        yield RunningServer(self.host, self.port, None)


@contextmanager
def run_on(target: Target, cpus: frozenset[int]) -> Iterator[RunningServer]:
    """Start a target confined to CPUs, and end it with the block."""
    with ExitStack() as stack:
        with affinity(cpus):  # processes that are started in it stay confined
            server = stack.enter_context(target.run())
        yield server


@contextmanager
def _run_command(
    name: str, words: Sequence[str], port: int | None = None
) -> Iterator[RunningServer]:
    """Run a command that serves, on a port or on a free one, until the end of the block."""
    if port is not None and listens(port):
        raise LoadError(
            f"the server {name} cannot have port {port}: something else listens on it; end that, "
            "or choose another --port"
        )
    port = port or free_port()
    command = fill_in_address(words, port)
    death_signal = ParentDeathSignal()
    with _scratch_file() as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # open and silent: some servers stop at the end of it
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PORT": str(port)},
                # However this process ends, its server ends with it.
                preexec_fn=lambda: death_signal.arm(signal.SIGKILL),  # noqa: PLW1509 - no thread runs yet
            )
        except OSError as error:
            raise LoadError(f"cannot start {command[0]}: {error.strerror}") from None
        try:
            if not _accepts(process, port):
                output.seek(0)
                last_line = output.read().decode(errors="replace").strip().splitlines()[-1:]
                reason = f"; it said: {last_line[0]}" if last_line else ""
                raise LoadError(f"the server {name} does not accept on port {port}{reason}")
            yield RunningServer(HOST, port, process.pid, process.poll)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_STOP_TIMEOUT)
            if process.stdin is not None:
                process.stdin.close()


def _accepts(process: "subprocess.Popen[bytes]", port: int) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            socket.create_connection((HOST, port), 1).close()
            return True
        time.sleep(_POLL_INTERVAL)
    return False
