"""What a parent and the children that it forks owe each other."""

import ctypes
import os
import sys
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1


class Strays:
    """Of process 1 of a container: the children that it has not started.

    Whoever loses its parent becomes process 1's child, and stays a zombie until that collects it.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def collect(self) -> None:
        """Collect who ended before this was called the last time, and still was not collected.

        The others may be of our own, or of a handler that runs programs, and about to be.
        """
        try:
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return
        except ChildProcessError:
            return
        import psutil  # much to import, and seldom needed

        ended = set()
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.status() == psutil.STATUS_ZOMBIE:
                    ended.add(child.pid)
        for pid in ended & self._seen:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = ended


class ParentalBond:
    """Makes children die with their parent, however it dies.

    Made in the parent, once: what every child would have to import is imported here.
    """

    def __init__(self) -> None:
        self._parent = os.getpid()
        self._libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie(self, number: int) -> None:
        """In the child: arrange for a signal when the parent is gone (prctl(2), PR_SET_PDEATHSIG).

        The signal comes when the *thread* that forked ends: fork from the main thread.
        """
        if self._libc is not None:
            self._libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != self._parent:  # it died between the fork and the line above
            os._exit(1)
