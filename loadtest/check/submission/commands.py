"""Why a command cannot be run, where what execve(2) reports does not tell."""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

_LONGEST_LINE = 256  # bytes of a first line: what the kernel reads of it


def explain_start(program: str, number: int | None) -> tuple[str, str]:
    """Return what to add to the error, and where to look; empty: the error says it all.

    Args:
        program: The first word of the command.
        number: The error of execve(2).
    """
    path = Path(shutil.which(program) or program)
    if number == errno.EACCES and path.is_dir():
        return "; it is a folder", "Name the program in it."
    if number == errno.EACCES and path.is_file():
        return "; it is a file that is not executable", f"chmod +x {program}, or {_run_by(program)}"
    if number == errno.ENOEXEC:
        return (
            "; it is not a program for this machine, and does not begin with #!",
            f"To run it, {_run_by(program)}",
        )
    return _explain_missing(program, path) if number == errno.ENOENT else ("", "")


def _run_by(program: str) -> str:
    return f"name what runs it, as in: python3 {program} {{port}}"


def _explain_missing(program: str, path: Path) -> tuple[str, str]:
    """Return the same where the system says that there is no such file; a script may be there."""
    interpreter = _interpreter(path)
    if interpreter is None:
        hint = (
            "A path is looked for from the folder in which echoload runs, a name without a slash "
            "in PATH. If --build makes it: under that name?"
        )
        return "", hint
    if interpreter.endswith("\r"):
        reason = "its first line ends in CRLF, so the system looks for"
        hint = f"Save it with line ends of Unix: sed -i 's/\\r$//' {program}"
    else:
        reason = "what its first line names is not:"
        hint = "After #! comes the path of a program that is on this machine, as /bin/sh."
    return f"; the file is there, but {reason} {interpreter!r}", hint


def _interpreter(path: Path) -> str | None:
    """Return the program that the first line of a script names; None: the file is not a script."""
    with suppress(OSError), path.open("rb") as file:
        line = file.readline(_LONGEST_LINE)
        if line.startswith(b"#!"):
            return line[2:].strip(b" \t\n").split(b" ")[0].decode(errors="replace")
    return None
