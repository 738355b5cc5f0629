"""What can be measured: a server that is started for each round, and gone after it."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import echoserver
from loadtest.measure import LoadError
from loadtest.peers import Peer

_START_TIMEOUT = 20.0  # seconds
_STOP_TIMEOUT = 10.0
_GLANCE = 0.01


@dataclass(frozen=True, slots=True)
class Running:
    """A server that accepts."""

    host: str
    port: int
    pid: int


class Target(Protocol):
    """A server that can be started."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    @property
    def backend(self) -> str | None:
        """The backend that it is; None for a peer."""

    def started(self) -> AbstractContextManager[Running]:
        """Start it, and end it with the block."""


@dataclass(frozen=True, slots=True)
class BackendTarget:
    """A backend of ours, or a plugin."""

    backend: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the server."""

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend

    @contextmanager
    def started(self) -> Iterator[Running]:
        """Start it, and drain it at the end of the block.

        Raises:
            LoadError: It did not end.
            echoserver.EchoServerError: It did not start.
        """
        settings = {"log_level": "warning", **self.settings}
        server = echoserver.spawn(backend=self.backend, **settings)
        try:
            with server:
                yield Running(server.host, server.port, server.pid)
        except subprocess.TimeoutExpired as error:
            raise LoadError(
                f"the server of {self.name} did not end within {error.timeout:.0f} s of SIGTERM"
            ) from None


class Workshop:
    """Where peers are compiled; gone at the end of the block."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="echoload-")

    def __enter__(self) -> Path:
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


@dataclass(frozen=True, slots=True)
class PeerTarget:
    """A server that is none of ours; it always echoes."""

    peer: Peer
    folder: Path
    backend: None = None

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.peer.name

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
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [*command, str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._await(process, port)
            yield Running("127.0.0.1", port, process.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_STOP_TIMEOUT)

    def _await(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            time.sleep(_GLANCE)
        raise LoadError(f"the server {self.name} does not accept on port {port}")
