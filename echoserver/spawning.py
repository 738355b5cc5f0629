"""A server beside your program: started, ready, and gone when you are."""

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
_KEPT_LINES = 1000


def spawn(
    *, arguments: Sequence[str] = (), interpreter: str | None = None, **settings: Any
) -> "SpawnedServer":
    """Start a server in a process of its own and wait until it listens.

    The server listens on a free port of 127.0.0.1 unless told otherwise, takes nothing from the
    environment's ``ECHOSERVER_*``, and drains when this process ends, however it ends.

    Args:
        settings: The fields of `Config`, for example ``backend="gevent"``, ``pool_size=8``.
        arguments: Further command-line arguments, as typed.
        interpreter: The Python to run it, which must have what the backend needs; None: this one.

    Raises:
        ConfigError: The server refused its configuration; the message is its own sentence.
        BootError: It could not listen, or ended or kept silent before it did.
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
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        lifeline, self._lifeline = os.pipe()
        options = [
            word
            for name, setting in {**settings, "lifeline": lifeline}.items()
            for words in _words(setting)
            for word in (option_name(name), *words)
        ]
        try:
            self.process = subprocess.Popen(
                # -P: a file of the same name in the working directory hides nothing.
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

    # -- what it is ----------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as ``socket.create_connection`` takes them; of several, the first ones.

        Of a UNIX socket, ``unix:/path`` and 0, as the clients here take them.
        """
        return self._announcement["host"], self._announcement["port"]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Every address that it listens on."""
        return [parse_address(one) for one in self._announcement.get("addresses", ())] or [
            self.address
        ]

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return self.address[0]

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.address[1]

    @property
    def pid(self) -> int:
        """The process id of the server (of its master, where there are several)."""
        return self.process.pid

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has logged so far (the last thousand lines), parsed."""
        return [event for line in list(self._lines) if (event := _parsed(line)) is not None]

    @property
    def stderr(self) -> str:
        """The same, as text, with whatever else it wrote."""
        return "".join(self._lines)

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Its ``stopped`` line: the totals; None while it runs, or where it was killed."""
        return next((event for event in self.log if event.get("event") == "stopped"), None)

    # -- its end -------------------------------------------------------------------------------

    def stop(self, timeout: float = _STOP_TIMEOUT) -> int:
        """Let it drain, wait for its end, return its exit code.

        Args:
            timeout: Seconds after which it is killed.

        Raises:
            subprocess.TimeoutExpired: It had to be killed.
        """
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = _STOP_TIMEOUT) -> int:
        """Wait for its end and return its exit code; kill it after `timeout` seconds.

        Raises:
            subprocess.TimeoutExpired: It had to be killed.
        """
        try:
            code = self.process.wait(timeout)
        except BaseException:
            self.kill()
            raise
        self._close()
        return code

    def kill(self) -> None:
        """End it at once, by SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        # It ends with the pipe, and then every line is in; but something that the server started
        # may have inherited the pipe, and keep it for as long as it likes.
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

    # -- its log -------------------------------------------------------------------------------

    def _read(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - it was opened as a pipe
        with self.process.stderr as lines:
            for line in lines:
                self._lines.append(line)
                if not self._listening.is_set():
                    event = _parsed(line)
                    if event is not None and event.get("event") == "listening":
                        self._announcement = event
                        self._listening.set()
        self._listening.set()  # or it never will be

    def _await_listening(self) -> None:
        in_time = self._listening.wait(_START_TIMEOUT)
        if self._announcement:
            return
        if not in_time:
            raise BootError(f"the server did not listen within {_START_TIMEOUT:.0f} seconds")
        code = self.process.wait()
        last = self.stderr.strip().splitlines()[-1:] or [f"it ended with exit code {code}"]
        kind: type[EchoServerError] = ConfigError if code == ConfigError.exit_code else BootError
        raise kind(last[0].removeprefix("echoserver: "))


def _environment(interpreter: str | None) -> dict[str, str]:
    """Return this process's environment without settings; another Python finds our package."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
    if interpreter is not None:
        found["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    return found


def _words(value: Any) -> list[list[str]]:
    """Return what is typed behind a setting's option, each time that it is typed."""
    if value is None or value is False:
        return []
    if value is True:
        return [[]]
    if isinstance(value, Mapping):
        return [[f"{key}={text}"] for key, text in value.items()]
    if isinstance(value, list | tuple):
        return [["=".join(item) if isinstance(item, tuple) else str(item)] for item in value]
    return [[str(value)]]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
