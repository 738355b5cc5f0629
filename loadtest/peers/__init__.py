"""Servers to compare with: what their own documentation teaches, and the same models in C or Go.

Each file is a server of its own: ``python -m loadtest.peers.asyncio_streams 9999``.
"""

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is not ours."""

    name: str
    needs: str
    """The Python package, or the compiler, that it needs."""

    @property
    def source(self) -> Path:
        """The source file of the server."""
        suffix = {"cc": ".c", "go": ".go"}.get(self.needs, ".py")
        return _HERE / f"{self.name.replace('-', '_')}{suffix}"

    @property
    def missing(self) -> str:
        """What is missing to run it here; empty: nothing."""
        if self.needs in {"cc", "go"}:
            return "" if shutil.which(self.needs) else f"the command {self.needs}"
        spec = importlib.util.find_spec(self.needs)
        return "" if spec else f"the package {self.needs}"

    def command(self, folder: Path) -> list[str]:
        """Return the command that starts it, to which the port is added; compile it if need be.

        Args:
            folder: The folder for compiled programs.

        Raises:
            RuntimeError: The compiler rejects it, or the folder does not exist.
        """
        if self.needs not in {"cc", "go"}:
            return [sys.executable, "-P", "-m", f"loadtest.peers.{self.source.stem}"]
        if not folder.is_dir():
            raise RuntimeError(
                f"cannot compile {self.source.name}: there is no folder for temporary files; set "
                "TMPDIR to one, or start the container with --tmpfs /tmp:exec"
            )
        program = folder / self.name
        if not program.exists():
            words = ["cc", "-O2", "-pthread"] if self.needs == "cc" else ["go", "build"]
            completed = subprocess.run(
                [*words, "-o", str(program), str(self.source)],
                capture_output=True,
                text=True,
                check=False,
            )
            if completed.returncode:
                raise RuntimeError(f"cannot compile {self.source.name}: {completed.stderr.strip()}")
        return [str(program)]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("socketserver-threading", "socketserver"),
        Peer("socketserver-forking", "socketserver"),
        Peer("multiprocessing-process", "multiprocessing"),
        Peer("python-fork", "socket"),
        Peer("gevent-streamserver", "gevent"),
        Peer("asyncio-streams", "asyncio"),
        Peer("asyncio-protocol", "asyncio"),
        Peer("uvloop-protocol", "uvloop"),
        Peer("trio-serve-tcp", "trio"),
        Peer("c-epoll", "cc"),
        Peer("c-threads", "cc"),
        Peer("c-fork", "cc"),
        Peer("go-net", "go"),
    )
}

# The peers of each backend: stock servers of its model (for a process per client, also the minimal
# one in Python), and a server of its model in C.
STOCK = {
    "process": ("socketserver-forking", "multiprocessing-process", "python-fork"),
    "thread": ("socketserver-threading",),
    "coroutine": ("trio-serve-tcp",),
    "gevent": ("gevent-streamserver", "go-net"),
    "asyncio": ("asyncio-streams", "asyncio-protocol"),
    "uvloop": ("uvloop-protocol",),
}
LIMIT = {
    "process": "c-fork",
    "thread": "c-threads",
    "pool": "c-threads",
    "selector": "c-epoll",
    "selector-pool": "c-epoll",
    "coroutine": "c-epoll",
    "gevent": "c-epoll",
    "asyncio": "c-epoll",
    "uvloop": "c-epoll",
}


def peers_of(backend: str) -> tuple[str, ...]:
    """Return the names of a backend's peers; a backend that is not ours has none."""
    limit = LIMIT.get(backend)
    return (*STOCK.get(backend, ()), *((limit,) if limit else ()))
