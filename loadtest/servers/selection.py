"""The targets of a comparison, selected by options, and whether threads can carry the load."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clients.workload import Workload
from echoserver import Config, EchoServer, load_backend
from echoserver.config import option_name
from echoserver.config import settings as all_settings
from echoserver.errors import did_you_mean
from loadtest.errors import usage
from loadtest.peers import PEERS, peers_of
from loadtest.servers.interpreters import Interpreter, find_interpreter
from loadtest.servers.specs import TargetSpec, describe_target, other_target, split_label
from loadtest.servers.targets import BackendTarget, CommandTarget, PeerTarget, Target

BACKENDS = "process,thread,pool,selector,coroutine,gevent,asyncio"

_MAX_THREADS = 2000
_MAX_THREAD_RATE = 2_000
"""The rate, in messages per second, up to which threads send each message in time."""


class TargetSelection:
    """Selects the targets of a comparison.

    Args:
        settings: The settings of every backend's server.
        folder: Where to compile peers.
        notes: Sentences that the reader must know, to which more are added.
        own: Names of settings that have options of their own.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        folder: Path,
        notes: list[str],
        own: frozenset[str] = frozenset(),
    ) -> None:
        self._settings = settings
        self._own = own | {"handler", "handler_option"}
        self._folder = folder
        self._notes = notes
        self._settings_in_use: set[str] = set()

    def targets(
        self,
        backends: str | None,
        specs: Sequence[str],
        command: Sequence[str],
        *,
        port: int | None = None,
        peers: bool,
        pythons: Sequence[str],
    ) -> list[Target]:
        """Return all targets; a note is added for each that cannot run here.

        Args:
            backends: Names, separated by commas; None: the usual ones, unless there are others.
            specs: Further targets, as typed.
            command: The words of a command that starts one more.
            port: The port on which that command listens; None: a free one, which it is told.
            peers: Add the peers of every backend.
            pythons: Paths of interpreters under which to run every backend, too.
        """
        if backends is None:
            backends = "" if specs or command else BACKENDS
        elif not backends.strip(" ,"):
            usage("--backends names no backend")
        names = list(dict.fromkeys(name.strip() for name in backends.split(",") if name.strip()))
        targets: list[Target] = [self._backend(TargetSpec(name), "--backends") for name in names]
        for python in pythons:
            targets += self._backends_under(python, names)
        try:
            targets += [self._target_of_spec(text) for text in specs]
            if command:
                targets.append(self._target_of_command(command, port))
        except ValueError as error:
            usage(f"--target: {error}")
        for setting in self._settings:
            if setting not in self._settings_in_use and any(target.backend for target in targets):
                usage(f"--server-option {setting}: none of --backends has a use for it")
        if peers:
            targets += self._peers([target.backend for target in targets if target.backend])
        if self._settings["handler"] != "echo" and any(
            isinstance(one, PeerTarget) for one in targets
        ):
            usage("peers echo, and do nothing else; leave out --handler")
        return targets

    def _target_of_spec(self, text: str) -> Target:
        spec = describe_target(text)
        return other_target(spec, self._folder) or self._backend(spec, "--target")

    def _target_of_command(self, command: Sequence[str], port: int | None) -> Target:
        """Return the target of ``-- [LABEL=]COMMAND...``."""
        words = shlex.join(command)
        if port is None and "{port}" not in words and "PORT" not in words:
            # It may read PORT from the environment, which cannot be checked here.
            self._notes.append(
                "The command has no {port}: it must listen on the environment's PORT."
            )
        label, first = split_label(command[0])
        command = [first, *command[1:]]
        if label is None:
            label = Path(first).name
        return CommandTarget(list(command), label, port)

    def _backend(self, spec: TargetSpec, source: str) -> BackendTarget:
        own_settings = {name.replace("-", "_"): value for name, value in spec.settings.items()}
        python = own_settings.pop("python", None)
        common_settings = {
            name: value for name, value in self._settings.items() if name not in own_settings
        }
        settings = _settings_of(spec.server, common_settings, source, self._own)
        self._settings_in_use |= set(settings)
        if own_settings:
            words = tuple(f"{name}={value}" for name, value in own_settings.items())
            settings |= _settings_of(
                spec.server, {**settings, **server_settings(words, source)}, source, self._own
            )
        interpreter = self._interpreter(python) if python else None
        return BackendTarget(spec.server, settings, spec.label, interpreter)

    def _backends_under(self, python: str, names: Sequence[str]) -> list[Target]:
        """Return backends under another interpreter; add a note for each that it cannot run."""
        interpreter = self._interpreter(python)
        targets: list[Target] = []
        for name in names:
            if lacking := _missing_for(interpreter, name):
                self._notes.append(f"{name}@{interpreter.label} is left out: {lacking}.")
                continue
            settings = _settings_of(name, self._settings, "--backends", self._own)
            targets.append(BackendTarget(name, settings, None, interpreter))
        return targets

    @staticmethod
    def _interpreter(path: str) -> Interpreter:
        try:
            return find_interpreter(path)
        except ValueError as error:
            usage(f"--python: {error}")

    def _peers(self, backends: Sequence[str]) -> list[Target]:
        targets: list[Target] = []
        for peer in dict.fromkeys(peer for name in backends for peer in peers_of(name)):
            if missing := PEERS[peer].missing:
                self._notes.append(f"{peer} is left out: {missing} is not installed.")
            else:
                targets.append(PeerTarget(PEERS[peer], self._folder))
        return targets


_LOAD_BACKEND = """
import sys, echoserver
try: echoserver.load_backend(sys.argv[1])
except Exception as error: print(error)
"""


def _missing_for(interpreter: Interpreter, backend: str) -> str:
    """Return why an interpreter cannot run a backend; empty: it can."""
    project = Path(__file__).resolve().parents[2]
    completed = subprocess.run(
        [
            *(interpreter.path, "-P", "-c"),
            _LOAD_BACKEND,
            backend,
        ],
        env={"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    return " ".join((completed.stdout or completed.stderr[-200:]).split()).rstrip(".")


def _settings_of(
    backend: str, settings: Mapping[str, Any], source: str, own: frozenset[str]
) -> dict[str, Any]:
    """Return the settings that a backend uses; reject wrong ones now, not in the first round."""
    reads = load_backend(backend, source).reads
    foreign = {
        setting.name
        for setting in all_settings()
        if setting.only_where_backend_reads and setting.name not in reads
    }
    usable = {name: value for name, value in settings.items() if name not in foreign}
    sources = {
        name: option_name(name) if name in own else f"--server-option {name}" for name in usable
    }
    EchoServer(Config(backend=backend, **usable, sources={"backend": source, **sources}))
    return usable


def server_settings(words: tuple[str, ...], source: str = "--server-option") -> dict[str, Any]:
    """Parse ``NAME=VALUE`` settings, whose values the server checks."""
    settings_by_name = {setting.name: setting for setting in all_settings() if not setting.hidden}
    settings: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not value:
            usage(f"{source} {word!r} is not NAME=VALUE, for example workers=2")
        if name not in settings_by_name:
            usage(f"{source}: no setting is named {name!r}{did_you_mean(name, settings_by_name)}")
        if name in {"backend", "handler", "handler_option"}:
            usage(f"{source} {word!r}: --{name.replace('_', '-')} has a place of its own")
        settings[name] = value
        if settings_by_name[name].flag:
            try:
                settings[name] = settings_by_name[name].parse(value)
            except ValueError as error:
                usage(f"{source} {word!r} must be {error}")
    return settings


def too_much_for_threads(workload: Workload) -> str:
    """Return why threads cannot carry a workload, whatever the server; empty: they may."""
    if workload.connections > _MAX_THREADS:
        return f"{workload.connections} connections would be as many threads"
    highest_rate = max(workload.rate or 0.0, workload.rate_end or 0.0)
    if highest_rate > _MAX_THREAD_RATE:
        return f"threads would not send {highest_rate:,.0f} messages a second in time"
    return ""
