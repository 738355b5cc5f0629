"""What children did, told in shared memory: it is there however a child ended."""

import marshal
import mmap
import os
import struct

Failure = tuple[str, dict[str, str]]
"""An event to be logged, and what is said about it."""


_PLACE = 1024  # bytes


class Reports:
    """A place for each child that lives, and a spare one.

    What a child does with it is short, for all that it looks at is memory to be copied.

    Args:
        fd: A file of that memory, which both sides have open (`Reports.room_for`).
    """

    _HEAD = struct.Struct("QQQ16sH")  # bytes in, out, discarded; the outcome; what follows
    _SECONDS = struct.Struct("d")
    _LONGEST_TEXT = 250

    __slots__ = ("_drain_timeout_at", "_memory", "_pack", "spare")

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, 0)  # shared (MAP_SHARED)
        self._pack = self._HEAD.pack_into
        self.spare = len(self._memory) // _PLACE - 1
        """The number of the place that no child has."""
        self._drain_timeout_at = len(self._memory) - self._SECONDS.size

    @classmethod
    def room_for(cls, count: int) -> int:
        """Return the descriptor of a file with places for so many children (memfd_create(2))."""
        fd = os.memfd_create("reports")
        os.ftruncate(fd, _PLACE * (count + 1))
        return fd

    @property
    def drain_timeout(self) -> float:
        """How long a drain may take, as the server last said: it may change while children live."""
        seconds: float = self._SECONDS.unpack_from(self._memory, self._drain_timeout_at)[0]
        return seconds

    @drain_timeout.setter
    def drain_timeout(self, seconds: float) -> None:
        self._SECONDS.pack_into(self._memory, self._drain_timeout_at, seconds)

    def write(
        self,
        number: int,
        received: int,
        sent: int,
        discarded: int,
        outcome: str,
        failures: list[Failure],
    ) -> None:
        """In the child: tell how the connection went.

        Args:
            number: The child's.
            received: Bytes that came in.
            sent: Bytes that went out.
            discarded: Bytes that came too late.
            outcome: Why it ended.
            failures: What is to be logged.
        """
        start = number * _PLACE
        told = self._write_failures(start, failures) if failures else 0
        self._pack(self._memory, start, received, sent, discarded, outcome.encode(), told)

    def _write_failures(self, start: int, failures: list[Failure]) -> int:
        """Return how many bytes they took."""
        failures = [
            (event, {key: text[-self._LONGEST_TEXT :] for key, text in about.items()})
            for event, about in failures
        ]
        told = marshal.dumps(failures)
        if len(told) > _PLACE - self._HEAD.size:
            told = marshal.dumps([(failures[0][0], {"reason": "too long to be told"})])
        self._memory[start + self._HEAD.size : start + self._HEAD.size + len(told)] = told
        return len(told)

    def take(self, number: int) -> tuple[tuple[int, int, int], str, list[Failure]]:
        """In the parent: learn it, and clear the place for another child.

        Returns:
            Figures, outcome and failures; the outcome is empty where a child did not live to tell.
        """
        start = number * _PLACE
        *figures, outcome, told = self._HEAD.unpack_from(self._memory, start)
        text = self._memory[start + self._HEAD.size : start + self._HEAD.size + told]
        self._memory[start : start + self._HEAD.size] = bytes(self._HEAD.size)
        received, sent, discarded = figures
        failures = marshal.loads(text) if told else []  # noqa: S302 - our own child wrote it
        return (received, sent, discarded), outcome.rstrip(b"\0").decode(), failures
