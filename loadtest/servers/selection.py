"""From what was typed to the targets that are compared, and the engine that can carry them."""

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

_MOST_THREADS = 2000
_MOST_RATE = 2_000
"""Messages a second that are due, of which threads still send each in time."""


class TargetSelection:
    """What to compare.

    Args:
        settings: Of every backend's server.
        folder: Where to compile peers.
        notes: What the reader must know; added to.
        own: Names of settings that were typed as options of their own.
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
        self._used: set[str] = set()

    def targets(
        self,
        backends: str | None,
        described: Sequence[str],
        command: Sequence[str],
        *,
        peers: bool,
        pythons: Sequence[str],
    ) -> list[Target]:
        """Return all targets; what cannot run here is noted instead.

        Args:
            backends: Names, separated by commas; None: the usual ones, unless others are given.
            described: Further targets, as typed.
            command: The words of a command that starts one more.
            peers: With the peers of every backend.
            pythons: Paths of interpreters under which to run every backend, too.
        """
        if backends is None:
            backends = "" if described or command else BACKENDS
        elif not backends.strip(" ,"):
            usage("--backends names no backend")
        names = list(dict.fromkeys(name.strip() for name in backends.split(",") if name.strip()))
        found: list[Target] = [self._backend(TargetSpec(name), "--backends") for name in names]
        for python in pythons:
            found += self._under(python, names)
        try:
            found += [self._described(text) for text in described]
            if command:
                found.append(self._typed(command))
        except ValueError as error:
            usage(f"--target: {error}")
        for setting in self._settings:
            if setting not in self._used and any(target.backend for target in found):
                usage(f"--server-option {setting}: none of --backends has a use for it")
        if peers:
            found += self._peers([target.backend for target in found if target.backend])
        if self._settings["handler"] != "echo" and any(
            isinstance(one, PeerTarget) for one in found
        ):
            usage("peers echo, and do nothing else; leave out --handler")
        return found

    def _described(self, text: str) -> Target:
        one = describe_target(text)
        return other_target(one, self._folder) or self._backend(one, "--target")

    def _typed(self, command: Sequence[str]) -> Target:
        """Return the target of ``-- [LABEL=]COMMAND...``."""
        words = shlex.join(command)
        if "{port}" not in words and "PORT" not in words:
            # It reads the environment's PORT; that cannot be seen from here.
            self._notes.append(
                "The command has no {port}: it must listen on the environment's PORT."
            )
        label, first = split_label(command[0])
        command = [first, *command[1:]]
        if label is None:
            label = Path(first).name
        return CommandTarget(list(command), label)

    def _backend(self, one: TargetSpec, source: str) -> BackendTarget:
        own = {name.replace("-", "_"): value for name, value in one.settings.items()}
        python = own.pop("python", None)
        common = {name: value for name, value in self._settings.items() if name not in own}
        mine = _settings_of(one.server, common, source, self._own)
        self._used |= set(mine)
        if own:
            words = tuple(f"{name}={value}" for name, value in own.items())
            mine |= _settings_of(
                one.server, {**mine, **server_settings(words, source)}, source, self._own
            )
        interpreter = self._interpreter(python) if python else None
        return BackendTarget(one.server, mine, one.label, interpreter)

    def _under(self, python: str, names: Sequence[str]) -> list[Target]:
        """Return backends under another interpreter; what it lacks is noted."""
        interpreter = self._interpreter(python)
        found: list[Target] = []
        for name in names:
            if lacking := _lacking(interpreter, name):
                self._notes.append(f"{name}@{interpreter.label} is left out: {lacking}.")
                continue
            mine = _settings_of(name, self._settings, "--backends", self._own)
            found.append(BackendTarget(name, mine, None, interpreter))
        return found

    @staticmethod
    def _interpreter(path: str) -> Interpreter:
        try:
            return find_interpreter(path)
        except ValueError as error:
            usage(f"--python: {error}")

    def _peers(self, backends: Sequence[str]) -> list[Target]:
        found: list[Target] = []
        for peer in dict.fromkeys(peer for name in backends for peer in peers_of(name)):
            if missing := PEERS[peer].missing:
                self._notes.append(f"{peer} is left out: {missing} is not installed.")
            else:
                found.append(PeerTarget(PEERS[peer], self._folder))
        return found


_TRY = """
import sys, echoserver
try: echoserver.load_backend(sys.argv[1])
except Exception as error: print(error)
"""


def _lacking(interpreter: Interpreter, backend: str) -> str:
    """Return why an interpreter cannot run a backend; nothing where it can."""
    package = Path(__file__).resolve().parents[2]
    asked = subprocess.run(
        [
            *(interpreter.path, "-P", "-c"),
            _TRY,
            backend,
        ],
        env={"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    return " ".join((asked.stdout or asked.stderr[-200:]).split()).rstrip(".")


def _settings_of(
    backend: str, settings: Mapping[str, Any], source: str, own: frozenset[str]
) -> dict[str, Any]:
    """Return those settings that a backend has a use for; complain now, not in the first round."""
    reads = load_backend(backend, source).reads
    not_its_own = {
        setting.name
        for setting in all_settings()
        if setting.only_where_backend_reads and setting.name not in reads
    }
    mine = {name: value for name, value in settings.items() if name not in not_its_own}
    sources = {
        name: option_name(name) if name in own else f"--server-option {name}" for name in mine
    }
    EchoServer(Config(backend=backend, **mine, sources={"backend": source, **sources}))
    return mine


def server_settings(words: tuple[str, ...], source: str = "--server-option") -> dict[str, Any]:
    """Read ``NAME=VALUE``; the server checks the values."""
    known = {one.name: one for one in all_settings() if not one.hidden}
    found: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not value:
            usage(f"{source} {word!r} is not NAME=VALUE, for example workers=2")
        if name not in known:
            usage(f"{source}: no setting is named {name!r}{did_you_mean(name, known)}")
        if name in {"backend", "handler", "handler_option"}:
            usage(f"{source} {word!r}: --{name.replace('_', '-')} has a place of its own")
        found[name] = value
        if known[name].flag:
            try:
                found[name] = known[name].parse(value)
            except ValueError as error:
                usage(f"{source} {word!r} must be {error}")
    return found


def too_much_for_threads(workload: Workload) -> str:
    """Return why threads cannot carry a workload, whatever the server; nothing where they may."""
    if workload.connections > _MOST_THREADS:
        return f"{workload.connections} connections would be as many threads"
    most = max(workload.rate or 0.0, workload.rate_end or 0.0)
    if most > _MOST_RATE:
        return f"threads would not send {most:,.0f} messages a second in time"
    return ""
