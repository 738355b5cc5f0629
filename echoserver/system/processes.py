"""What a parent and the children that it forks owe each other."""

import ctypes
import os
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_WITHOUT_REAPING = os.WEXITED | os.WNOHANG | os.WNOWAIT


class OrphanReaper:
    """Of process 1 of a container: the children that it has not started.

    An orphan becomes process 1's child, and stays a zombie until it is reaped.
    """

    def __init__(self) -> None:
        self._seen = 0

    def collect(self) -> None:
        """Collect who had ended when this was called the last time, and still was not collected.

        Another one may be of our own, or of a handler that runs programs, and about to be. (It
        takes no descriptor, of which there may be none.)
        """
        try:
            while (ended := os.waitid(os.P_ALL, 0, _WITHOUT_REAPING)) is not None:
                if ended.si_pid != self._seen:
                    self._seen = ended.si_pid
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:
            pass
        self._seen = 0


class ParentDeathSignal:
    """Makes children die with their parent, however it dies.

    Made in the parent, once: what every child would have to import is imported here.
    """

    def __init__(self) -> None:
        self._parent = os.getpid()
        self._libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None

    def arm(self, number: int) -> None:
        """In the child: arrange for a signal when the parent is gone (prctl(2), PR_SET_PDEATHSIG).

        The signal comes when the *thread* that forked ends: fork from the main thread.
        """
        if self._libc is not None:
            self._libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != self._parent:  # it died between the fork and the line above
            os._exit(1)
