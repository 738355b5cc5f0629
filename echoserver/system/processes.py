"""Reaping orphans, and ending children together with their parent."""

import ctypes
import os
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_WITHOUT_REAPING = os.WEXITED | os.WNOHANG | os.WNOWAIT


class OrphanReaper:
    """Reaps the orphans that process 1 of a container inherits.

    An orphan becomes a child of process 1, and stays a zombie until it is reaped.
    """

    def __init__(self) -> None:
        self._candidate = 0  # a process that had ended at the last call

    def collect(self) -> None:
        """Reap children that had ended by the last call, and that nobody has reaped since.

        A child that has just ended may belong to the server, or to a handler that runs programs,
        and is then about to be reaped by its owner. (`waitid` needs no descriptor, of which there
        may be none left.)
        """
        try:
            while (child := os.waitid(os.P_ALL, 0, _WITHOUT_REAPING)) is not None:
                if child.si_pid != self._candidate:
                    self._candidate = child.si_pid
                    return
                os.waitpid(child.si_pid, os.WNOHANG)
        except ChildProcessError:
            pass
        self._candidate = 0


class ParentDeathSignal:
    """Makes children die with their parent, however it dies.

    It is made once, in the parent, so that children need not import what it takes.
    """

    def __init__(self) -> None:
        self._parent = os.getpid()
        self._libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None

    def arm(self, number: int) -> None:
        """Have the kernel signal this child when its parent ends (prctl(2), PR_SET_PDEATHSIG).

        The signal comes when the *thread* that forked ends, so fork from the main thread.
        """
        if self._libc is not None:
            self._libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != self._parent:  # the parent ended before the line above
            os._exit(1)
