"""A lock that processes share, and that the death of whoever holds it frees."""

import fcntl
import os


class SharedLock:
    """Lets one process at a time in (fcntl(2), advisory record locking).

    It is the kernel's, so nobody is locked out by a process that was killed. It knows processes and
    no threads: those of one process need a lock of their own around it.

    Args:
        name: How /proc/PID/fd shows it.
    """

    def __init__(self, name: str) -> None:
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC)

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close its descriptor."""
        os.close(self._fd)
