"""What a parent and the children that it forks owe each other."""

import mmap
import os
import signal
import struct
import sys
from typing import Any

from echoserver.connection import Connection

_PR_SET_PDEATHSIG = 1


class ParentalBond:
    """Makes children die with their parent, however it dies.

    Made in the parent, once: what every child would have to import is imported here.
    """

    def __init__(self) -> None:
        self._parent = os.getpid()
        self._libc: Any = None
        if sys.platform == "linux":
            import ctypes

            self._libc = ctypes.CDLL(None)

    def tie(self) -> None:
        """In the child: arrange for SIGKILL when the parent is gone (prctl(2), PR_SET_PDEATHSIG).

        The signal comes when the *thread* that forked ends: fork from the main thread.
        """
        if self._libc is not None:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:  # it died between the fork and the line above
            os._exit(1)


class Reports:
    """What children did, told in shared memory: it is there however a child ended.

    Args:
        count: Children that live at a time, at most.
    """

    _LAYOUT = struct.Struct("QQQ16s")  # bytes in, out, discarded; the outcome's name

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, self._LAYOUT.size * count)  # shared with children (MAP_SHARED)
        self._free: list[int] = []
        self._used = 0

    def reserve(self) -> int:
        """Return the number of a report that no living child has."""
        if self._free:
            return self._free.pop()
        self._used += 1
        return self._used - 1

    def write(self, number: int, connection: Connection) -> None:
        """In the child: tell how the connection went."""
        self._LAYOUT.pack_into(
            self._memory,
            number * self._LAYOUT.size,
            connection.bytes_in,
            connection.bytes_out,
            connection.bytes_discarded,
            connection.outcome.encode(),
        )

    def collect(self, number: int, connection: Connection) -> None:
        """In the parent: learn it, and free the report for another child."""
        start = number * self._LAYOUT.size
        received, sent, discarded, outcome = self._LAYOUT.unpack_from(self._memory, start)
        connection.bytes_in, connection.bytes_out = received, sent
        connection.bytes_discarded = discarded
        connection.outcome = connection.outcome or outcome.rstrip(b"\0").decode()
        self.discard(number)

    def discard(self, number: int) -> None:
        """In the parent: no child was started after all."""
        start = number * self._LAYOUT.size
        self._memory[start : start + self._LAYOUT.size] = bytes(self._LAYOUT.size)
        self._free.append(number)
