"""How tests let `echoload check` grade a server, and the servers that it is shown."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.launching import command, run

SPECIMENS = Path(__file__).parents[1] / "specimens"
NEEDED = {".py": "", ".c": "cc", ".js": "node", ".sh": "sh"}


@dataclass(frozen=True, slots=True)
class Specimen:
    """A server, and what its first lines say of it."""

    path: Path

    def declared(self, what: str, otherwise: str) -> str:
        """Return what its header says after ``what:``."""
        found = re.search(rf"^\W*{what}: (.+)$", self.path.read_text(), re.MULTILINE)
        return found[1] if found else otherwise

    @property
    def fails(self) -> set[str]:
        """The checks that it fails."""
        return set(self.declared("Fails", "").split())

    @property
    def expect(self) -> str:
        """What it is meant to answer."""
        return self.declared("Expect", "echo")

    @property
    def missing(self) -> str:
        """What it takes to run it and is not here."""
        needs = NEEDED[self.path.suffix]
        return needs if needs and not shutil.which(needs) else ""

    def words(self, folder: Path) -> list[str]:
        """Return the command that starts it; what is compiled goes into a folder."""
        if self.path.suffix == ".py":
            return [sys.executable, str(self.path), "{port}"]
        if self.path.suffix != ".c":
            return [NEEDED[self.path.suffix], str(self.path), "{port}"]
        program = folder / self.path.stem
        subprocess.run(["cc", "-O1", "-pthread", "-o", program, self.path], check=True)
        return [str(program), "{port}"]


def specimens() -> list[Specimen]:
    """Return all of them."""
    return [Specimen(path) for path in sorted(SPECIMENS.iterdir()) if path.suffix in NEEDED]


def specimen(name: str) -> list[str]:
    """Return the command of one in Python."""
    return [sys.executable, str(SPECIMENS / f"{name}.py"), "{port}"]


def backend_words(backend: str, workers: int | None) -> list[str]:
    """Return a command that starts a server of ours."""
    several = ["--workers", str(workers)] if workers else []
    return [command("echoserver"), "--backend", backend, "--port", "{port}", *several]


def check(words: list[str], *options: str, **settings: Any) -> dict[str, Any]:
    """Grade a server that a command starts; return what is found, as JSON has it."""
    done = run("echoload", "check", *options, "--format", "json", "--", *words, **settings)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def failed(found: dict[str, Any]) -> dict[str, str]:
    """Return the messages of the checks that failed."""
    return {
        one["id"]: one["message"] for one in found["checks"] if one["status"] in {"failed", "error"}
    }


def status(found: dict[str, Any], name: str) -> str:
    """Return what became of a check."""
    return str(next(one["status"] for one in found["checks"] if one["id"] == name))
