"""Content that only one connection of one run can have sent, and what it means when it differs.

A message begins with a header (connection, sequence number, length, in hexadecimal) where it has
room for one; the rest is the connection's own pseudo-random bytes, which follow from the run's
seed. So a reply that is wrong also tells what it is: damaged, or somebody else's.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

_HEADER = b"%04x:%08x:%06x:"
_HEADER_PATTERN = re.compile(rb"([0-9a-f]{4}):([0-9a-f]{8}):([0-9a-f]{6}):", re.IGNORECASE)
_HEADER_SIZE = len(_HEADER % (0, 0, 0))
_STREAM_SIZE = 8192  # of short messages' content, after which it repeats
_FINGERPRINT = 6  # bytes that are taken to identify a connection's content


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with a reply."""

    kind: str
    """``foreign``: another connection's bytes. ``mismatch``: any other wrong bytes."""
    explanation: str


class Content:
    """What connection number `connection` of the run `seed` sends, and what it must get back.

    Args:
        seed: The run's; the same seed gives the same bytes.
        connection: Number of the connection, from 0 to 65535.
        size: Bytes per message.
        answer: What the server's handler makes of a message.
    """

    def __init__(
        self, seed: int, connection: int, size: int, answer: Callable[[bytes], bytes] = bytes
    ) -> None:
        self.connection = connection
        self.size = size
        self._answer = answer
        self._same = answer is bytes
        self._has_header = size >= _HEADER_SIZE + _FINGERPRINT
        stream = random.Random(f"{seed}:{connection}")
        self._own = stream.randbytes(size - _HEADER_SIZE if self._has_header else _STREAM_SIZE)
        self._own_answer = answer(self._own)

    def message(self, number: int) -> tuple[bytes, bytes]:
        """Return message `number` and the reply owed for it."""
        if self._has_header:
            header = _HEADER % (self.connection, number & 0xFFFFFFFF, self.size)
            if self._same:
                message = header + self._own
                return message, message
            return header + self._own, self._answer(header) + self._own_answer
        start = number * self.size % (_STREAM_SIZE - self.size)
        end = start + self.size
        return self._own[start:end], self._own_answer[start:end]

    def holds(self, piece: bytes) -> bool:
        """Tell whether `piece` is part of what this connection gets back."""
        return piece in self._own_answer


def diagnose(
    own: Content,
    number: int,
    reply: bytes,
    expected: bytes,
    other: Callable[[int], Content],
    connections: int,
) -> Difference:
    """Tell what kind of wrong `reply` is.

    Args:
        own: The content of the connection that got it.
        number: Of the message that it answers.
        reply: What came.
        expected: What should have come.
        other: Returns the content of another connection of the run.
        connections: How many there are.
    """
    pairs = enumerate(zip(reply, expected, strict=False))
    offset = next((i for i, (came, due) in pairs if came != due), min(len(reply), len(expected)))
    where = f"connection {own.connection}, message {number}, byte {offset}"
    came, due = reply[offset : offset + 16], expected[offset : offset + 16]
    facts = f"{where}: {came!r} came where {due!r} was owed"
    header = _HEADER_PATTERN.search(reply, max(0, offset - _HEADER_SIZE + 1))
    if header is not None and int(header[1], 16) != own.connection:
        return Difference("foreign", f"{facts}; it is connection {int(header[1], 16)}'s")
    fingerprint = reply[offset : offset + _FINGERPRINT]
    if len(fingerprint) == _FINGERPRINT and not own.holds(fingerprint):
        for owner in range(connections):
            if owner != own.connection and other(owner).holds(fingerprint):
                return Difference("foreign", f"{facts}; it is connection {owner}'s")
    return Difference("mismatch", facts)
