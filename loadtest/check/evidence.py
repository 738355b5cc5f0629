"""The evidence of a check: a timeline, and the first difference between two streams of bytes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

_MAX_SHOWN = 24  # bytes of what was sent or received
_FIRST, _LAST = 8, 10  # events that are kept
_RECENT = 6
_BEFORE, _AFTER = 8, 16  # bytes shown around a difference
_RECOGNISABLE = 12  # bytes that are enough to recognise a place in a stream


@dataclass(slots=True)
class Event:
    """Something that happened on a connection."""

    seconds: float
    connection: str
    what: str

    def __str__(self) -> str:
        return f"{self.seconds:7.3f} s  {self.connection}: {self.what}"


class Timeline:
    """What happened during a check: the first events, and the last."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._first: list[Event] = []
        self._last: list[Event] = []
        self._dropped = 0
        self._transfer: tuple[str, str, bytes, int, int] | None = None

    def add(self, connection: str, event_text: str) -> None:
        """Add an event to the timeline."""
        self._transfer = None
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        self._append(Event(now - self._start, connection, event_text))

    def add_transfer(self, connection: str, verb: str, data: bytes | memoryview) -> None:
        """Add that bytes were sent or received; successive transfers of a kind become one event."""
        start, size, pieces = bytes(data[:_MAX_SHOWN]), len(data), 1
        transfer = self._transfer
        if transfer is not None and transfer[:2] == (connection, verb):
            start, size, pieces = (
                (transfer[2] + start)[:_MAX_SHOWN],
                transfer[3] + size,
                transfer[4] + 1,
            )
            (self._last or self._first)[-1].what = _describe_transfer(verb, start, size, pieces)
        else:
            self.add(connection, _describe_transfer(verb, start, size, pieces))
        self._transfer = (connection, verb, start, size, pieces)

    @contextmanager
    def summarize(self, connection: str, event_text: str) -> Iterator[None]:
        """Sum up the events of the block as one; if the block fails, keep the last ones as well."""
        self.add(connection, event_text)
        outer_events, self._first, self._last = (self._first, self._last, self._dropped), [], []
        failed = True
        try:
            yield
            failed = False
        finally:
            recent = (self._first + self._last)[-_RECENT:] if failed else []
            self._first, self._last, self._dropped = outer_events
            self._transfer = None
            for event in recent:
                self._append(event)

    def lines(self) -> list[str]:
        """Return the timeline as lines of text."""
        between = [f"          ... {self._dropped} more ..."] if self._dropped else []
        return [*map(str, self._first), *between, *map(str, self._last)]

    def _append(self, event: Event) -> None:
        if len(self._first) < _FIRST:
            self._first.append(event)
            return
        self._last.append(event)
        if len(self._last) > _LAST:
            del self._last[0]
            self._dropped += 1


def _describe_transfer(verb: str, start: bytes, size: int, pieces: int) -> str:
    start_text = repr(start[:_MAX_SHOWN])[1:] + ("..." if size > _MAX_SHOWN else "")
    pieces_text = f" in {pieces} pieces" if pieces > 1 and verb == "sent" else ""
    return f"{verb} {count(size, 'byte')}{pieces_text}: {start_text}"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference between two streams of bytes."""

    offset: int
    expected: list[str]
    """What was owed around there: hexadecimal, and ASCII."""
    received: list[str]
    explanation: str


@dataclass(slots=True)
class Evidence:
    """The evidence for a failure."""

    difference: Difference | None = None
    timeline: list[str] = field(default_factory=list)
    server: list[str] = field(default_factory=list)
    """The server's processes, and the kernel's view of its sockets."""
    output: list[str] = field(default_factory=list)
    """The last lines that the server printed."""

    def as_dict(self) -> dict[str, Any]:
        """Return the evidence as a dictionary, without empty parts."""
        return {name: value for name, value in asdict(self).items() if value}


def difference(received: bytes, expected: bytes) -> Difference | None:
    """Return the first difference between two streams; None if they are equal."""
    if received == expected:
        return None
    offset = first_difference(received, expected)
    start = max(0, offset - _BEFORE)
    return Difference(
        offset,
        _dump(expected, start),
        _dump(received, start),
        _explain(received, expected, offset),
    )


def first_difference(one: bytes, other: bytes) -> int:
    """Return the offset of the first byte that differs; without one, the length of the shorter."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _explain(received: bytes, expected: bytes, offset: int) -> str:
    rest, owed = received[offset:], expected[offset:]
    if not rest:
        return f"the last {f'{len(owed):,} bytes' if len(owed) > 1 else 'byte'} did not come"
    if not owed:
        return f"{count(len(rest), 'extra byte')} came"
    if received.upper() == expected.upper():
        return "it differs in case only: what is owed depends on the assignment (--expect)"
    return _explain_shift(received, expected, offset) or (
        f"byte {rest[0]:#04x} came where {owed[0]:#04x} was owed"
    )


def _explain_shift(received: bytes, expected: bytes, offset: int) -> str:
    """Return where the received bytes belong, or what is missing; empty if that is unknown."""
    rest, owed = received[offset:], expected[offset:]
    if (
        len(rest) >= _RECOGNISABLE
        and (position := expected.find(rest[:_RECOGNISABLE], offset)) >= 0
    ):
        return f"{count(position - offset, 'byte')} of what is owed did not come"
    if (
        len(owed) >= _RECOGNISABLE
        and (position := received.find(owed[:_RECOGNISABLE], offset)) >= 0
    ):
        return f"{count(position - offset, 'extra byte')} came here"
    if len(rest) >= _RECOGNISABLE and (position := expected.find(rest[:_RECOGNISABLE])) >= 0:
        return (
            f"what came here was owed earlier, at byte {position:,}: it came twice, or out of order"
        )
    return ""


def _dump(data: bytes, start: int) -> list[str]:
    """Return the bytes from `start` as hexdump(1) shows them."""
    rows = []
    for at in range(start, start + _BEFORE + _AFTER, _BEFORE):
        row = data[at : at + _BEFORE]
        if not row:
            rows.append(f"{at:08x}  (nothing more)")
            break
        ascii_ = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)  # noqa: PLR2004
        rows.append(f"{at:08x}  {row.hex(' '):<{3 * _BEFORE - 1}}  |{ascii_}|")
    return rows


def count(number: int, noun: str) -> str:
    """Return ``1 byte`` or ``2,000 bytes``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
