"""Files by names that a person types: what is really behind such a name, and how much of it."""

import errno
import os
import select
import stat
import time

LONGEST = 4 << 20
"""Bytes of the largest file that is read: CA bundles have a quarter of a million."""

PATIENCE = 5.0
"""Seconds within which a file must have been read."""

_CHUNK = 1 << 16
_MOST_LINKS = 40  # as the kernel follows (path_resolution(7))


def read_file(path: str | os.PathLike[str], *, reload: bool = False) -> bytes:
    """Return what is in a file that a person named, in bounded time and memory.

    At the start it may be a pipe, such as a shell makes for ``<(...)``, whose writer ends within
    `PATIENCE`; a signal ends the process then. A reload reads regular files only, and in a thread
    that is left behind where their mount does not answer: the main flow must come back.

    Args:
        path: Its name.
        reload: There are clients that are being served.

    Raises:
        OSError: It cannot be read, is too large, or takes too long; with its name.
    """
    if not reload:
        return _read(path, reload=False)
    import threading  # noqa: PLC0415 - a forked child need not have it

    outcome: list[bytes | OSError] = []

    def read() -> None:
        try:
            outcome.append(_read(path, reload=True))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=read, daemon=True)
    try:
        thread.start()
        thread.join(PATIENCE)
    except RuntimeError:  # the system has no thread left
        read()
    match outcome:
        case [bytes() as data]:
            return data
        case [OSError() as error]:
            raise error
    raise OSError(errno.ETIMEDOUT, f"it does not answer within {PATIENCE:g} seconds", path)


def _read(path: str | os.PathLike[str], *, reload: bool) -> bytes:
    # Without O_NONBLOCK, to open a pipe that nobody writes to would wait.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        regular = stat.S_ISREG(found.st_mode) or os.path.samestat(found, os.stat(os.devnull))  # noqa: PTH116
        if reload and not regular:
            raise OSError(errno.EINVAL, "it is not a regular file, and can be read once")
        return _read_to_end(fd)
    except OSError as error:  # that of a descriptor does not have the name
        error.filename = path
        raise
    finally:
        os.close(fd)


def _read_to_end(fd: int) -> bytes:
    poll, deadline = select.poll(), time.monotonic() + PATIENCE
    poll.register(fd, select.POLLIN)
    pieces: list[bytes] = []
    size = 0
    while True:
        # Before the first read, which would take a pipe without a writer for an empty one.
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise OSError(errno.ETIMEDOUT, f"there is no end within {PATIENCE:g} seconds")
        piece = os.read(fd, _CHUNK)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
        if size > LONGEST:
            raise OSError(errno.EFBIG, f"it is larger than {LONGEST >> 20} MiB")


def own_descriptor(path: str) -> int | None:
    """Return the descriptor of this process that `path` names, such as 2 for ``/dev/stderr``.

    To open such a name makes an open file with an offset of its own, so what is written there lies
    on what others write who share the descriptor (open(2)); and a socket cannot be opened at all.

    Args:
        path: A name, or a symbolic link to one: ``/dev/stdout``, ``/proc/self/fd/5``.

    Returns:
        The number; None: it names something else.
    """
    own = os.path.realpath("/proc/self/fd")
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(path)
        if name.isdecimal() and os.path.realpath(folder) == own:
            return int(name)
        try:
            path = os.path.join(folder, os.readlink(path))  # noqa: PTH118, PTH115 - text
        except OSError:  # not a link
            return None
    return None
