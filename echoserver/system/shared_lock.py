"""A robust inter-process lock: the kernel releases it when its holder dies."""

import errno
import fcntl
import os
import time

_WAKE_TIMEOUT = 0.0005  # seconds


class SharedLock:
    """Lets one process at a time in (fcntl(2), advisory record locking).

    It is the kernel's, so nobody is locked out by a process that was killed. It knows processes and
    no threads: those of one process need a lock of their own around it. And where two threads
    hold one lock each, and two of another process want the other, it takes that for a deadlock.

    Args:
        name: How /proc/PID/fd shows it.
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
                time.sleep(_WAKE_TIMEOUT)
            else:
                return

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock's descriptor."""
        os.close(self._fd)
