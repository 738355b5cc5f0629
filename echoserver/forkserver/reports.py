"""Reports of children to the server, in shared memory.

Shared memory keeps what a child wrote, however that child ended.
"""

import marshal
import mmap
import os
import struct

Failure = tuple[str, dict[str, str]]
"""An event to be logged, and its details."""


_PLACE_SIZE = 1024  # bytes


class Reports:
    """The reports: a place for each living child, and a spare one.

    A child does little here, because each page that it touches has to be copied.

    Args:
        fd: The shared file, which both sides have open (`Reports.create_file`).
    """

    _HEAD = struct.Struct("QQQ16sH")  # bytes in, out, discarded; outcome; size of the failures
    _SECONDS = struct.Struct("d")
    _MAX_TEXT_LENGTH = 250  # characters

    __slots__ = ("_drain_timeout_at", "_memory", "_pack", "spare")

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, 0)  # shared (MAP_SHARED)
        self._pack = self._HEAD.pack_into
        self.spare = len(self._memory) // _PLACE_SIZE - 1
        """The number of the place that no child has."""
        self._drain_timeout_at = len(self._memory) - self._SECONDS.size

    @classmethod
    def create_file(cls, count: int) -> int:
        """Return the descriptor of a file with places for `count` children (memfd_create(2))."""
        fd = os.memfd_create("reports")
        os.ftruncate(fd, _PLACE_SIZE * (count + 1))
        return fd

    @property
    def drain_timeout(self) -> float:
        """Seconds that a drain may take. The server may change it while children live."""
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
        """Report the result of a connection, in the child.

        Args:
            number: The child's number.
            received: Bytes that came in.
            sent: Bytes that went out.
            discarded: Bytes that came after our FIN.
            outcome: Why the connection ended.
            failures: The failures to be logged.
        """
        start = number * _PLACE_SIZE
        size = self._write_failures(start, failures) if failures else 0
        self._pack(self._memory, start, received, sent, discarded, outcome.encode(), size)

    def _write_failures(self, start: int, failures: list[Failure]) -> int:
        """Write failures behind the head of a place, and return their size in bytes."""
        failures = [
            (event, {key: text[-self._MAX_TEXT_LENGTH :] for key, text in details.items()})
            for event, details in failures
        ]
        data = marshal.dumps(failures)
        if len(data) > _PLACE_SIZE - self._HEAD.size:
            data = marshal.dumps([(failures[0][0], {"reason": "too long to be reported"})])
        self._memory[start + self._HEAD.size : start + self._HEAD.size + len(data)] = data
        return len(data)

    def take(self, number: int) -> tuple[tuple[int, int, int], str, list[Failure]]:
        """Return a child's report, in the parent, and clear the place for another child.

        Returns:
            Figures, outcome and failures. The outcome is empty if the child ended without a report.
        """
        start = number * _PLACE_SIZE
        *figures, outcome, size = self._HEAD.unpack_from(self._memory, start)
        data = self._memory[start + self._HEAD.size : start + self._HEAD.size + size]
        self._memory[start : start + self._HEAD.size] = bytes(self._HEAD.size)
        received, sent, discarded = figures
        failures = marshal.loads(data) if size else []  # noqa: S302 - our own child wrote it
        return (received, sent, discarded), outcome.rstrip(b"\0").decode(), failures
