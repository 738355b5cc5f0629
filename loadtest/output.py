"""What a command writes: files, standard output, and sentences on standard error.

Results are saved before anything is shown, so that a reader who has seen enough, a full disk or a
terminal's encoding costs no file. Paths mean what they mean to other Unix tools: ``-`` is standard
output, and ``/dev/stdout``, ``/dev/fd/63`` (what a shell makes of ``>(...)``) and named pipes are
written to, not replaced.
"""

import errno
import fcntl
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from loadtest.errors import usage

EXIT_CLOSED_OUTPUT = 128 + signal.SIGPIPE

_STANDARD_OUTPUT = 1
_DESCRIPTOR_NAMES = {
    "-": _STANDARD_OUTPUT,
    "/dev/stdin": 0,
    "/dev/stdout": _STANDARD_OUTPUT,
    "/dev/stderr": 2,
}
_DESCRIPTORS = ("/dev/fd", "/proc/self/fd")


def descriptor(path: str | Path) -> int | None:
    """Return the descriptor of this process that a path names; None: it names a file."""
    text = str(path)
    if text in _DESCRIPTOR_NAMES:
        return _DESCRIPTOR_NAMES[text]
    folder, name = os.path.split(text)
    return int(name) if folder in _DESCRIPTORS and name.isdecimal() else None


def is_standard_output(path: str | Path) -> bool:
    """Tell whether a path names standard output."""
    return descriptor(path) == _STANDARD_OUTPUT


def is_stream(path: str | Path) -> bool:
    """Tell whether a path names a stream, which cannot be rewritten: a pipe, a terminal."""
    if descriptor(path) is not None:
        return True
    final = Path(path)
    return final.exists() and not final.is_file()


def write(path: str | Path, text: str) -> None:
    """Write `text` to `path`; to a file, whole or not at all.

    Characters that UTF-8 cannot encode, as of an argument that was not text, are replaced.

    Raises:
        OSError: It cannot be written.
    """
    data = text.encode("utf-8", errors="replace")
    if (number := descriptor(path)) is not None:
        if number == _STANDARD_OUTPUT:
            sys.stdout.flush()
        with os.fdopen(os.dup(number), "wb") as stream:  # by path, a file would be truncated
            stream.write(data)
        return
    if is_stream(path):
        with Path(path).open("wb") as stream:
            stream.write(data)
        return
    draft = _draft(path)
    try:
        with os.fdopen(_create(draft), "wb") as file:
            file.write(data)
        draft.replace(os.path.realpath(path))  # a symbolic link stays a link
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _draft(path: str | Path) -> Path:
    final = Path(os.path.realpath(path))
    return final.with_name(f".echoload-{secrets.token_hex(8)}{final.suffix}")


def _create(draft: Path) -> int:
    # In a folder that others can write to, the name must not be a file or link of theirs.
    return os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def refuse_unwritable(path: str, option: str) -> None:
    """Reject a file that cannot be written, before the work whose result it is to hold."""
    try:
        reason = _try_to_write(path)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in {errno.ENOENT, errno.EACCES, errno.ENOTDIR}:
            reason = "its folder does not exist or cannot be written to"
    if reason:
        usage(f"{option}: cannot write {path}: {reason}")


def _try_to_write(path: str) -> str:
    """Return why a path cannot be written, as far as can be seen without writing to it."""
    if (number := descriptor(path)) is not None:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        return "it is open for reading only" if mode == os.O_RDONLY else ""
    if Path(path).is_dir():
        return "it is a folder"
    if is_stream(path):
        return "" if os.access(path, os.W_OK) else os.strerror(errno.EACCES)
    draft = _draft(path)
    os.close(_create(draft))
    draft.unlink()
    too_long = len(os.fsencode(Path(path).name)) > os.pathconf(draft.parent, "PC_NAME_MAX")
    return os.strerror(errno.ENAMETOOLONG) if too_long else ""


def refuse_same_destination(files: Iterable[tuple[str, str]]) -> None:
    """Reject two options that name the same destination: the second would overwrite the first.

    Args:
        files: Pairs of an option and its path.
    """
    owners: dict[object, str] = {}
    for option, path in files:
        number = descriptor(path)
        destination: object = os.path.realpath(path) if number is None else number
        if destination in owners:
            usage(
                f"{owners[destination]} and {option} both name {path}; each needs a file of its own"
            )
        owners[destination] = option


def show(print_output: Callable[[], None]) -> OSError | None:
    """Print on standard output; return the error that prevented it.

    After an error, all further output is discarded.

    Args:
        print_output: Does the printing.
    """
    try:
        print_output()
        sys.stdout.flush()
    except OSError as error:
        _discard_output()
        return error
    return None


def save_and_show(
    json_file: str | None, value: Any, print_result: Callable[[TextIO], None]
) -> tuple[str, bool]:
    """Save a result as JSON, then show it.

    Args:
        json_file: Where to save it; None: nowhere.
        value: The result, as JSON can hold it.
        print_result: Prints it: on standard output or, if that is where the JSON goes, on standard
            error.

    Returns:
        What went wrong, and whether standard output was closed meanwhile.
    """
    failure = ""
    if json_file is not None:
        try:
            write(json_file, json.dumps(value, indent=2) + "\n")
        except OSError as error:
            failure = f"--json: cannot write {json_file}: {error.strerror}"
    if json_file is not None and is_standard_output(json_file):
        with suppress(OSError):
            print_result(sys.stderr)
        return failure, False
    problem = show(lambda: print_result(sys.stdout))
    closed = isinstance(problem, BrokenPipeError)  # the reader has seen enough
    if problem is not None and not closed:
        failure = failure or f"cannot write the result: {problem.strerror}"
    return failure, closed


def _discard_output() -> None:
    """Discard all further output on standard output, and what is buffered."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def complain(sentence: str) -> None:
    """Print a sentence on standard error; a standard error that is closed or full is ignored."""
    with suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)
