"""Other Pythons that a backend can run under."""

import json
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Another Python, to run a backend with."""

    path: str
    version: str
    gil: bool

    @property
    def label(self) -> str:
        """Its name in tables: ``3.13.1`` or, without the GIL, ``3.13.1t``."""
        return self.version + ("" if self.gil else "t")


_DESCRIBE = """
import json, platform, sys
missing = []
for name in ("click", "structlog"):
    try: __import__(name)
    except ImportError: missing.append(name)
gil = getattr(sys, "_is_gil_enabled", lambda: True)()
print(json.dumps({"version": platform.python_version(), "gil": gil, "missing": missing}))
"""


def find_interpreter(path: str) -> Interpreter:
    """Return the description of the Python at `path`.

    Raises:
        ValueError: It is not a Python, or lacks what a server needs; the message is a sentence.
    """
    try:
        completed = subprocess.run(
            [path, "-P", "-c", _DESCRIBE], capture_output=True, text=True, check=True, timeout=20
        )
        description = json.loads(completed.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        raise ValueError(f"{path} is not a Python 3.11 or later that runs") from None
    if missing := " ".join(description["missing"]):
        raise ValueError(f"{path} lacks what a server needs: {path} -m pip install {missing}")
    return Interpreter(path, description["version"], description["gil"])
