"""Targets as people type them: a label, and an address, a backend, a peer or a command."""

import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clients.address import is_unix, parse_address
from loadtest.peers import PEERS
from loadtest.servers.targets import AddressTarget, CommandTarget, PeerTarget, Target

_LABEL = re.compile(r"(?P<label>[\w.@+-]+(?: +[\w.@+-]+)*)=(?P<rest>.+)", re.DOTALL)

_ADDRESS = re.compile(r".*:\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A target as typed: ``[LABEL=]SERVER[,SETTING=VALUE...]``."""

    server: str
    label: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_command(self) -> bool:
        """The target is a command that starts a server."""
        return "{port}" in self.server

    @property
    def is_address(self) -> bool:
        """The target is the address of a running server."""
        return not self.is_command and bool(is_unix(self.server) or _ADDRESS.fullmatch(self.server))

    @property
    def is_peer(self) -> bool:
        """The target is one of `loadtest.peers`."""
        return self.server in PEERS


def describe_target(text: str) -> TargetSpec:
    """Read a target as people type it.

    Raises:
        ValueError: It is not a target; the message is a sentence.
    """
    label, text = split_label(text.strip())
    if "{port}" in text or is_unix(text):
        return TargetSpec(text, label)
    server, *words = (word.strip() for word in text.split(","))
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not SETTING=VALUE, for example workers=2")
        settings[name] = value
    if not server:
        raise ValueError(f"{text!r} names no server")
    return TargetSpec(server, label, settings)


def split_label(text: str) -> tuple[str | None, str]:
    """Split ``LABEL=SERVER`` into the label (None: there is none) and the server.

    A label may have spaces (``my server=python3 s.py {port}``). A command with an argument that has
    a "=" (``python3 s.py --x=1 {port}``) has none: its first word can be run, and what follows the
    "=" cannot.
    """
    match = _LABEL.fullmatch(text)
    if match is None:
        return None, text
    label, rest = match["label"], match["rest"]
    words = label.split()
    if len(words) > 1:
        has_option = any(word.startswith("-") for word in words)
        if has_option or (shutil.which(words[0]) and not shutil.which((rest.split() or [""])[0])):
            return None, text
    return label, rest


def other_target(spec: TargetSpec, folder: Path) -> "Target | None":
    """Return the target that a spec names; None if it is a backend.

    Args:
        spec: The target as typed.
        folder: Where to compile peers.

    Raises:
        ValueError: It cannot run here; the message is a sentence.
    """
    if not (spec.is_command or spec.is_address or spec.is_peer):
        return None
    if spec.settings:
        raise ValueError(f"{spec.server}: only a backend has settings")
    if spec.is_command:
        words = shlex.split(spec.server)
        return CommandTarget(words, spec.label or Path(words[0]).name)
    if spec.is_address:
        host, port = parse_address(spec.server)
        return AddressTarget(host, port, spec.label or spec.server)
    peer = PEERS[spec.server]
    if missing := peer.missing:
        raise ValueError(f"{peer.name} cannot run here: {missing} is not installed")
    return PeerTarget(peer, folder, spec.label)
