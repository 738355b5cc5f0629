"""A server in a process beside your program: it is ready when you get it, and ends when you do."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from echoserver.addresses import parse_address
from echoserver.config import ENVIRONMENT_PREFIX, option_name
from echoserver.errors import BootError, ConfigError, EchoServerError

_START_TIMEOUT = 20.0  # seconds; a loaded machine imports slowly
_STOP_TIMEOUT = 15.0  # seconds; the default drain takes at most 8
_LAST_LINES_TIMEOUT = 1.0  # seconds
_MAX_LINES = 1000


def spawn(
    *, arguments: Sequence[str] = (), interpreter: str | None = None, **settings: Any
) -> "SpawnedServer":
    """Start a server in a process of its own and wait until it listens.

    The server listens on a free port of 127.0.0.1 unless `settings` differ, takes nothing from the
    environment's ``ECHOSERVER_*``, and drains when this process ends, however it ends.

    Args:
        settings: The fields of `Config`, for example ``backend="gevent"``, ``pool_size=8``.
        arguments: Further command-line arguments, as typed.
        interpreter: The Python that runs the server, which must have the packages that the
            backend needs; None: this one.

    Raises:
        ConfigError: The server refused its configuration; the message is its own sentence.
        BootError: The server could not listen, ended before it did, or did not listen in time.
    """
    return SpawnedServer(settings, arguments, interpreter)


class SpawnedServer:
    """A running server; as a context manager, one that stops at the end of the block."""

    def __init__(
        self,
        settings: dict[str, Any],
        arguments: Sequence[str] = (),
        interpreter: str | None = None,
    ) -> None:
        settings = {"port": 0, **settings, "log_format": "json"}
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        lifeline, self._lifeline = os.pipe()
        options = [
            word
            for name, setting in {**settings, "lifeline": lifeline}.items()
            for words in _option_values(setting)
            for word in (option_name(name), *words)
        ]
        try:
            self.process = subprocess.Popen(
                # -P: a file of that name in the working directory must not hide the package.
                [interpreter or sys.executable, "-P", "-m", "echoserver", *options, *arguments],
                env=_environment(interpreter),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(lifeline,),
                start_new_session=True,  # Ctrl-C is for the program that spawned it
                text=True,
                errors="replace",
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)
        self._listening = threading.Event()
        self._announcement: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._read, name="echoserver-log", daemon=True)
        self._reader.start()
        try:
            self._await_listening()
        except BaseException:
            self.kill()
            raise

    # -- properties ----------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first address, as ``socket.create_connection`` takes them.

        For a UNIX socket, ``unix:/path`` and 0, as this project's clients take them.
        """
        return self._announcement["host"], self._announcement["port"]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Every address that the server listens on."""
        return [parse_address(one) for one in self._announcement.get("addresses", ())] or [
            self.address
        ]

    @property
    def host(self) -> str:
        """The host of the first address that the server listens on."""
        return self.address[0]

    @property
    def port(self) -> int:
        """The port of the first address that the server listens on."""
        return self.address[1]

    @property
    def pid(self) -> int:
        """The process id of the server (of its master, where there are several)."""
        return self.process.pid

    @property
    def log(self) -> list[dict[str, Any]]:
        """The events that the server has logged so far, parsed (of the last thousand lines)."""
        return [event for line in list(self._lines) if (event := _parse_event(line)) is not None]

    @property
    def stderr(self) -> str:
        """What the server has written to standard error so far (the last thousand lines)."""
        return "".join(self._lines)

    @property
    def stopped(self) -> dict[str, Any] | None:
        """The ``stopped`` event, with totals; None while the server runs, or if it was killed."""
        return next((event for event in self.log if event.get("event") == "stopped"), None)

    # -- stopping ------------------------------------------------------------------------------

    def stop(self, timeout: float = _STOP_TIMEOUT) -> int:
        """Let the server drain, wait until it has ended, and return its exit code.

        Args:
            timeout: Seconds after which the server is killed.

        Raises:
            subprocess.TimeoutExpired: The server had to be killed.
        """
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = _STOP_TIMEOUT) -> int:
        """Wait until the server has ended, and return its exit code; kill it after `timeout`.

        Args:
            timeout: Seconds after which the server is killed.

        Raises:
            subprocess.TimeoutExpired: The server had to be killed.
        """
        try:
            code = self.process.wait(timeout)
        except BaseException:
            self.kill()
            raise
        self._close()
        return code

    def kill(self) -> None:
        """Kill the server at once (SIGKILL)."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        # The reader has every line when the pipe ends. But a process that the server started may
        # have inherited the pipe and keep it open, so the wait is limited.
        self._reader.join(_LAST_LINES_TIMEOUT)
        if self._lifeline != -1:
            os.close(self._lifeline)
            self._lifeline = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self.process.returncode is None:
            self.stop()

    # -- reading the log -----------------------------------------------------------------------

    def _read(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - it was opened as a pipe
        with self.process.stderr as lines:
            for line in lines:
                self._lines.append(line)
                if not self._listening.is_set():
                    event = _parse_event(line)
                    if event is not None and event.get("event") == "listening":
                        self._announcement = event
                        self._listening.set()
        self._listening.set()  # the log has ended: nothing else would end the wait for it

    def _await_listening(self) -> None:
        has_reported = self._listening.wait(_START_TIMEOUT)
        if self._announcement:
            return
        if not has_reported:
            raise BootError(f"the server did not listen within {_START_TIMEOUT:.0f} seconds")
        code = self.process.wait()
        last_lines = self.stderr.strip().splitlines()[-1:] or [f"it ended with exit code {code}"]
        kind: type[EchoServerError] = ConfigError if code == ConfigError.exit_code else BootError
        raise kind(last_lines[0].removeprefix("echoserver: "))


def _environment(interpreter: str | None) -> dict[str, str]:
    """Return this process's environment without settings, and with a path to our package."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
    if interpreter is not None:
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    return environment


def _option_values(value: Any) -> list[list[str]]:
    """Return the arguments of a setting's option: a list for each time that it is repeated."""
    if value is None or value is False:
        return []
    if value is True:
        return [[]]
    if isinstance(value, Mapping):
        return [[f"{key}={text}"] for key, text in value.items()]
    if isinstance(value, list | tuple):
        return [["=".join(item) if isinstance(item, tuple) else str(item)] for item in value]
    return [[str(value)]]


def _parse_event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
