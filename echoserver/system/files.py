"""Reading files that a user names, which may be pipes or devices, in bounded time and memory."""

import errno
import os
import select
import stat
import time

MAX_FILE_SIZE = 4 << 20
"""The size in bytes of the largest file that is read. CA bundles have a quarter of a million."""

READ_TIMEOUT = 5.0
"""Seconds within which a file must have been read."""

_CHUNK_SIZE = 1 << 16  # bytes
_MAX_LINKS = 40  # as many as the kernel follows (path_resolution(7))


def read_file(path: str | os.PathLike[str], *, reload: bool = False) -> bytes:
    """Return the content of a file that a user named, in bounded time and memory.

    At startup the file may be a pipe, such as a shell makes for ``<(...)``, if its writer ends
    within `READ_TIMEOUT`; a signal still ends the process at that time. A reload reads regular
    files only, and in a thread that is abandoned if their mount does not answer, because the main
    flow must not hang while it serves clients.

    Args:
        path: The file's name.
        reload: Clients are being served meanwhile.

    Raises:
        OSError: The file cannot be read, is too large, or takes too long to read. The error names
            the file.
    """
    if not reload:
        return _read(path, reload=False)
    import threading  # noqa: PLC0415 - forked children do without it

    outcome: list[bytes | OSError] = []

    def read() -> None:
        try:
            outcome.append(_read(path, reload=True))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=read, daemon=True)
    try:
        thread.start()
        thread.join(READ_TIMEOUT)
    except RuntimeError:  # the system has no thread left
        read()
    match outcome:
        case [bytes() as data]:
            return data
        case [OSError() as error]:
            raise error
    raise OSError(errno.ETIMEDOUT, f"it does not answer within {READ_TIMEOUT:g} seconds", path)


def _read(path: str | os.PathLike[str], *, reload: bool) -> bytes:
    # Without O_NONBLOCK, opening a pipe that nobody writes to would block.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        regular = stat.S_ISREG(status.st_mode) or os.path.samestat(status, os.stat(os.devnull))  # noqa: PTH116
        if reload and not regular:
            raise OSError(errno.EINVAL, "it is not a regular file, so a reload cannot read it")
        return _read_to_end(fd)
    except OSError as error:  # errors of calls on a descriptor do not name the file
        error.filename = path
        raise
    finally:
        os.close(fd)


def _read_to_end(fd: int) -> bytes:
    poll, deadline = select.poll(), time.monotonic() + READ_TIMEOUT
    poll.register(fd, select.POLLIN)
    pieces: list[bytes] = []
    size = 0
    while True:
        # Wait before the first read, too: reading a pipe that has no writer yet would look like its
        # end.
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise OSError(errno.ETIMEDOUT, f"it does not end within {READ_TIMEOUT:g} seconds")
        piece = os.read(fd, _CHUNK_SIZE)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
        if size > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, f"it is larger than {MAX_FILE_SIZE >> 20} MiB")


def own_descriptor(path: str) -> int | None:
    """Return the descriptor of this process that `path` names, such as 2 for ``/dev/stderr``.

    Opening such a name would create an open file description with an offset of its own (open(2)),
    so its writes would overwrite those of other processes that share the descriptor. A socket
    cannot be opened by name at all.

    Args:
        path: Such a name, or a symbolic link to one: ``/dev/stdout``, ``/proc/self/fd/5``.

    Returns:
        The descriptor, or None if `path` names something else.
    """
    own = os.path.realpath("/proc/self/fd")
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(path)
        if name.isdecimal() and os.path.realpath(folder) == own:
            return int(name)
        try:
            path = os.path.join(folder, os.readlink(path))  # noqa: PTH118, PTH115 - text
        except OSError:  # not a link
            return None
    return None
