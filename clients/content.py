"""Content that only one connection of one run can have sent, and what it means when it differs.

A message begins with a header (connection, sequence number, length, in hexadecimal) where it has
room for one; the rest is the connection's own pseudo-random bytes, which follow from the run's
seed. So a reply that is wrong also tells what it is: damaged, another message's, or somebody
else's.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from clients.distributions import Sizes

_HEADER = b"%04x:%08x:%06x:"
_HEADER_PATTERN = re.compile(rb"([0-9a-f]{4}):([0-9a-f]{8}):([0-9a-f]{6}):", re.IGNORECASE)
_HEADER_SIZE = len(_HEADER % (0, 0, 0))
_NUMBERS = 1 << 32  # of longer messages, after which they repeat
_STREAM_SIZE = 8192  # of short messages' content, after which it repeats
_FINGERPRINT = 6  # bytes that are taken to identify a connection's content

# Short messages are made beforehand, so many of them for each connection, and sent in turn: to make
# each when it is due costs the client of 400 threads a seventh of its rate, and to have more of
# them costs what fits the cache no longer. The number is a prime, lest what a server's buffer had
# at the same place before pass for new.
_RING = 11
_SMALL = 1024  # bytes

_NEIGHBOURS = 16  # messages before and after one, whose replies are recognised in its place

# Kinds of wrong replies.
CORRUPTED = "corrupted"
FOREIGN = "foreign"
DUPLICATED = "duplicated"
REORDERED = "reordered"
LOST = "lost"
TRUNCATED = "truncated"
UNEXPECTED = "unexpected"
WRONG = frozenset({CORRUPTED, FOREIGN, DUPLICATED, REORDERED, LOST, TRUNCATED, UNEXPECTED})

Frame = tuple[int, bytes, bytes]
"""A message's number, the message, and the reply that is owed for it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with a reply."""

    kind: str
    """``corrupted``: damaged. ``foreign``: another connection's bytes. ``duplicated``: the reply
    to an earlier message again. ``reordered``: that to a later one came first. ``lost``: that to a
    later one came, and none to this. ``truncated``: it ends too early, and something else goes on.
    ``unexpected``: bytes that belong to no message."""
    explanation: str


class Content:
    """What connection number `connection` of the run `seed` sends, and what it must get back.

    Args:
        seed: The run's; the same seed gives the same bytes.
        connection: Number of the connection, from 0 to 65535.
        sizes: Bytes per message.
        answer: What the server's handler makes of a message.
        under_way: How many messages can be on their way at a time.
    """

    def __init__(
        self,
        seed: int,
        connection: int,
        sizes: Sizes | int,
        answer: Callable[[bytes], bytes] = bytes,
        under_way: int = 1,
    ) -> None:
        if isinstance(sizes, int):
            sizes = Sizes(sizes, sizes)
        self.connection = connection
        self._answer = answer
        self._same = answer is bytes
        self._sizes = sizes.draw(f"{seed}:{connection}:sizes")
        has_header = sizes.smallest >= _HEADER_SIZE + _FINGERPRINT
        few = sizes.fixed and sizes.largest <= _SMALL and under_way < _RING // 2
        self._numbers = _RING if few else _NUMBERS
        stream = random.Random(f"{seed}:{connection}")
        length = sizes.largest - _HEADER_SIZE
        self._own = stream.randbytes(length if has_header else max(_STREAM_SIZE, length))
        self._own_answer = answer(self._own)

    def message(self, number: int) -> tuple[bytes, bytes]:
        """Return message `number` and the reply owed for it."""
        number %= self._numbers
        size = self._sizes[number % len(self._sizes)]
        body = size - _HEADER_SIZE
        if body >= _FINGERPRINT:
            header = _HEADER % (self.connection, number, size)
            if self._same:
                message = header + self._own[:body]
                return message, message
            return header + self._own[:body], self._answer(header) + self._own_answer[:body]
        start = number * size % (_STREAM_SIZE - size)
        end = start + size
        return self._own[start:end], self._own_answer[start:end]

    def frames(self) -> Iterator[Frame]:
        """Return all messages, from number 0, with the replies owed."""
        if self._numbers != _RING:
            return ((number, *self.message(number)) for number in itertools.count())
        messages, replies = zip(*map(self.message, range(_RING)), strict=True)
        # Put together by C code, for every message of every connection.
        return zip(
            itertools.count(), itertools.cycle(messages), itertools.cycle(replies), strict=False
        )

    @property
    def neighbours(self) -> int:
        """How many messages before and after one are known from all others."""
        return min(_NEIGHBOURS, (self._numbers - 1) // 2)

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
        number: Of the message that it answers, or that would come next where nothing is owed.
        reply: What came, and what came after it.
        expected: What should have come; empty where nothing is owed.
        other: Returns the content of another connection of the run.
        connections: How many there are.
    """
    pairs = enumerate(zip(reply, expected, strict=False))
    offset = next((i for i, (came, due) in pairs if came != due), min(len(reply), len(expected)))
    where = f"connection {own.connection}, message {number}, byte {offset}"
    came, due = reply[offset : offset + 16], expected[offset : offset + 16]
    owed = f"{due!r} was owed" if expected else "nothing was owed"
    facts = f"{where}: {came!r} came where {owed}"

    if (owner := _owner(own, reply, offset, other, connections)) is not None:
        return Difference(FOREIGN, f"{facts}; it is connection {owner}'s")
    kind, what = _neighbour(own, number, reply, expected, offset)
    if kind:
        return Difference(kind, f"{facts}; {what}")
    if not expected:
        return Difference(UNEXPECTED, facts)
    return Difference(CORRUPTED, facts)


def _owner(
    own: Content, reply: bytes, offset: int, other: Callable[[int], Content], connections: int
) -> int | None:
    """Return the number of the connection whose bytes these are, if it is another."""
    header = _HEADER_PATTERN.search(reply, max(0, offset - _HEADER_SIZE + 1))
    if header is not None and int(header[1], 16) != own.connection:
        return int(header[1], 16)
    fingerprint = reply[offset : offset + _FINGERPRINT]
    if header is None and len(fingerprint) == _FINGERPRINT and not own.holds(fingerprint):
        for number in range(connections):
            if number != own.connection and other(number).holds(fingerprint):
                return number
    return None


def _neighbour(
    own: Content, number: int, reply: bytes, expected: bytes, offset: int
) -> tuple[str, str]:
    """Tell whether the reply to another message of ours stands where this one should."""
    for distance in range(1, own.neighbours + 1):
        for neighbour in (number - distance, number + distance):
            if neighbour < 0:
                continue
            theirs = own.message(neighbour)[1]
            # Its beginning is its own only as far as the sequence number, which is in a header.
            if reply.startswith(theirs) and len(theirs) >= min(_FINGERPRINT, len(expected)):
                if neighbour < number:
                    return DUPLICATED, f"it is the reply to message {neighbour} again"
                if expected in reply:
                    return REORDERED, f"it is the reply to message {neighbour}"
                return LOST, f"it is the reply to message {neighbour}, and none came to this one"
            if neighbour > number and 0 < (start := reply.find(theirs[:_HEADER_SIZE])) == offset:
                return TRUNCATED, f"after {start} bytes the reply to message {neighbour} begins"
    if expected and (start := reply.find(expected)) > 0:
        return UNEXPECTED, f"the reply follows after {start} bytes"
    return "", ""
