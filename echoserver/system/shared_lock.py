"""A robust inter-process lock: the kernel releases it when its holder dies."""

import errno
import fcntl
import os
import time

_RETRY_INTERVAL = 0.0005  # seconds


class SharedLock:
    """A lock that one process at a time can hold (fcntl(2), advisory record locking).

    The kernel keeps it, so a process that was killed locks nobody out. It belongs to a process, not
    to a thread: the threads of one process need a lock of their own around it. And where two
    threads of one process each hold such a lock, and two threads of another process each want one
    of them, the kernel may mistake that for a deadlock (EDEADLK), so locking is tried again.

    Args:
        name: The name by which /proc/PID/fd shows the lock.
    """

    def __init__(self, name: str) -> None:
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC)

    def __enter__(self) -> None:
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno != errno.EDEADLK:
                    raise
                time.sleep(_RETRY_INTERVAL)
            else:
                return

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock's descriptor."""
        os.close(self._fd)
