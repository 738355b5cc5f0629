"""What a parent and the children that it forks owe each other."""

import ctypes
import os
import sys
from collections.abc import Collection
from typing import Any

_PR_SET_PDEATHSIG = 1


def collect_strays(known: Collection[int]) -> None:
    """As process 1 of a container: collect whoever ended and had no other parent left.

    Args:
        known: Children of our own, which are collected elsewhere.
    """
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in known:
            return
        os.waitpid(ended.si_pid, 0)


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
