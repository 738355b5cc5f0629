"""What was seen on the wire: a timeline, and the first difference between two streams of bytes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

_SHOWN = 24  # bytes of what was sent or received
_FIRST, _LAST = 8, 10  # events that are kept
_RECENT = 6
_BEFORE, _AFTER = 8, 16  # bytes shown around a difference
_RECOGNISED = 12  # bytes by which a place in a stream is known


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
        self._begun: float | None = None
        self._first: list[Event] = []
        self._last: list[Event] = []
        self._dropped = 0
        self._going: tuple[str, str, bytes, int, int] | None = None

    def add(self, connection: str, what: str) -> None:
        """Add an event to the timeline."""
        self._going = None
        now = time.monotonic()
        self._begun = now if self._begun is None else self._begun
        self._append(Event(now - self._begun, connection, what))

    def moved(self, connection: str, verb: str, data: bytes | memoryview) -> None:
        """Add that bytes were sent or received; what follows at once of the same kind is one."""
        start, size, pieces = bytes(data[:_SHOWN]), len(data), 1
        going = self._going
        if going is not None and going[:2] == (connection, verb):
            start, size, pieces = (going[2] + start)[:_SHOWN], going[3] + size, going[4] + 1
            (self._last or self._first)[-1].what = _moved(verb, start, size, pieces)
        else:
            self.add(connection, _moved(verb, start, size, pieces))
        self._going = (connection, verb, start, size, pieces)

    @contextmanager
    def summed_up(self, connection: str, what: str) -> Iterator[None]:
        """Keep what happens in the block as one event; where it fails, the last events as well."""
        self.add(connection, what)
        whole, self._first, self._last = (self._first, self._last, self._dropped), [], []
        failed = True
        try:
            yield
            failed = False
        finally:
            recent = (self._first + self._last)[-_RECENT:] if failed else []
            self._first, self._last, self._dropped = whole
            self._going = None
            for event in recent:
                self._append(event)

    def lines(self) -> list[str]:
        """Return it as text."""
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


def _moved(verb: str, start: bytes, size: int, pieces: int) -> str:
    shown = repr(start[:_SHOWN])[1:] + ("..." if size > _SHOWN else "")
    often = f" in {pieces} pieces" if pieces > 1 and verb == "sent" else ""
    return f"{verb} {count(size, 'byte')}{often}: {shown}"


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two streams of bytes part."""

    offset: int
    expected: list[str]
    """What was owed around there: hexadecimal, and ASCII."""
    received: list[str]
    explanation: str


@dataclass(slots=True)
class Evidence:
    """What a failure rests on."""

    difference: Difference | None = None
    timeline: list[str] = field(default_factory=list)
    server: list[str] = field(default_factory=list)
    """Its processes, and the kernel's view of its sockets."""
    output: list[str] = field(default_factory=list)
    """The last lines that it printed."""

    def as_dict(self) -> dict[str, Any]:
        """Return what there is of it."""
        return {name: value for name, value in asdict(self).items() if value}


def difference(received: bytes, expected: bytes) -> Difference | None:
    """Return where `received` differs from `expected`; None where it does not."""
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
    """Return the offset of the first byte that differs; the shorter's length where none does."""
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
    return _shifted(received, expected, offset) or (
        f"byte {rest[0]:#04x} came where {owed[0]:#04x} was owed"
    )


def _shifted(received: bytes, expected: bytes, offset: int) -> str:
    """Say where what came belongs, or what is missing, where it can be recognised."""
    rest, owed = received[offset:], expected[offset:]
    if len(rest) >= _RECOGNISED and (found := expected.find(rest[:_RECOGNISED], offset)) >= 0:
        return f"{count(found - offset, 'byte')} of what is owed did not come"
    if len(owed) >= _RECOGNISED and (found := received.find(owed[:_RECOGNISED], offset)) >= 0:
        return f"{count(found - offset, 'extra byte')} came here"
    if len(rest) >= _RECOGNISED and (found := expected.find(rest[:_RECOGNISED])) >= 0:
        return f"what came here was owed earlier, at byte {found:,}: it came twice, or out of order"
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
