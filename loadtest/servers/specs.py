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
        """It is a command that starts a server."""
        return "{port}" in self.server

    @property
    def is_address(self) -> bool:
        """It is a server that runs already."""
        return not self.is_command and bool(is_unix(self.server) or _ADDRESS.fullmatch(self.server))

    @property
    def is_peer(self) -> bool:
        """It is one of `loadtest.peers`."""
        return self.server in PEERS


def describe_target(text: str) -> TargetSpec:
    """Read a target as people type it.

    Raises:
        ValueError: It is none; the message is a sentence.
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
    """Return the label of ``LABEL=SERVER``, None where there is none, and what follows it.

    A label may have spaces (``my server=python3 s.py {port}``). A command with an argument that has
    a "=" (``python3 s.py --x=1 {port}``) has none: its first word can be run, and what stands after
    the "=" can not.
    """
    found = _LABEL.fullmatch(text)
    if found is None:
        return None, text
    label, rest = found["label"], found["rest"]
    words = label.split()
    if len(words) > 1:
        option = any(word.startswith("-") for word in words)
        if option or (shutil.which(words[0]) and not shutil.which((rest.split() or [""])[0])):
            return None, text
    return label, rest


def other_target(described: TargetSpec, folder: Path) -> "Target | None":
    """Return the target where it is not a backend; None where it is.

    Args:
        described: What was typed.
        folder: Where to compile peers.

    Raises:
        ValueError: It cannot be had; the message is a sentence.
    """
    if not (described.is_command or described.is_address or described.is_peer):
        return None
    if described.settings:
        raise ValueError(f"{described.server}: only a backend has settings")
    if described.is_command:
        words = shlex.split(described.server)
        return CommandTarget(words, described.label or Path(words[0]).name)
    if described.is_address:
        host, port = parse_address(described.server)
        return AddressTarget(host, port, described.label or described.server)
    peer = PEERS[described.server]
    if missing := peer.missing:
        raise ValueError(f"{peer.name} cannot run here: {missing} is not installed")
    return PeerTarget(peer, folder, described.label)
