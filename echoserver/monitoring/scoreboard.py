"""What processes of a server tell each other, in shared memory: it is there however one ends."""

import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Self

from echoserver.config import Config
from echoserver.monitoring.counters import Totals, Vitals

_TOTALS = [field.name for field in fields(Totals)]
_VITALS = [field.name for field in fields(Vitals)]
_totals_of, _vitals_of = attrgetter(*_TOTALS), attrgetter(*_VITALS)
_WORD = 8  # bytes
_STILL = 100  # attempts to read what does not change meanwhile


def worker_count(config: Config) -> int:
    """Return how many processes serve at a time."""
    if isinstance(config.workers, int):
        return config.workers
    return len(os.sched_getaffinity(0)) if config.workers else 1


@dataclass(frozen=True, slots=True)
class Account:
    """What a process has done, and how it fares."""

    vitals: Vitals
    totals: Totals


class Scoreboard:
    """Places for processes that serve, each of which writes to its own and to no other.

    No reader sees half of an integer: each lies where the processor writes it at once, and is
    copied there. (`struct.pack_into` would do otherwise: it clears the place first.)

    Args:
        places: How many processes there may be at a time.
        numbers: How many of them have a number, from 1; who replaces one has the same.
    """

    _HEAD = struct.Struct("=QQQQQQQdd")  # see the offsets below
    _DRAINS, _CHANGES, _QUEUE, _QUEUE_LIMIT, _LOST, _RESTARTS = range(0, 48, 8)
    _RELOAD_FAILED, _RELOADED, _EXPIRES = range(48, 72, 8)
    _STATE = struct.Struct("=dQQ")  # beat, number, serves
    _DONE = struct.Struct(f"={len(_VITALS) + len(_TOTALS)}Q")
    _PLACE = _STATE.size + _DONE.size

    def __init__(self, places: int, numbers: int) -> None:
        self.places, self.numbers = places, numbers
        self._past = self._HEAD.size + places * self._PLACE
        self._memory = mmap.mmap(-1, self._past + (numbers + 1) * self._DONE.size)  # MAP_SHARED
        self._words = memoryview(self._memory).cast("Q")
        self._times = memoryview(self._memory).cast("d")
        self._free = list(range(places))
        self.note_reload(successful=True)  # the start is the first time

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return one for a server: with workers, there is room for those that replace them."""
        count = worker_count(config)
        return cls(8 * count + 64 if config.workers else 1, count)

    # -- about the whole server ----------------------------------------------------------------

    @property
    def everyone_drains(self) -> bool:
        """Every process was told, or is about to be told, to drain."""
        return bool(self._get(self._DRAINS))

    def drain_everyone(self) -> None:
        """Mark the whole server as draining."""
        self._set(self._DRAINS, 1)

    @property
    def queue(self) -> tuple[int, int]:
        """How many clients wait to be accepted, and how many may."""
        return self._get(self._QUEUE), self._get(self._QUEUE_LIMIT)

    def set_queue(self, waiting: int, limit: int) -> None:
        """Publish how many clients wait to be accepted, and how many may."""
        self._set(self._QUEUE, waiting)
        self._set(self._QUEUE_LIMIT, limit)

    @property
    def lost(self) -> int:
        """Lines that the access log's file did not take."""
        return self._get(self._LOST)

    def count_lost_lines(self, lines: int) -> None:
        """In the process that writes that file: count some more."""
        self._set(self._LOST, self.lost + lines)

    @property
    def restarts(self) -> int:
        """Workers that were started in the place of one that had died."""
        return self._get(self._RESTARTS)

    def count_restart(self) -> None:
        """In the master: count one more."""
        self._set(self._RESTARTS, self.restarts + 1)

    @property
    def last_reload(self) -> tuple[bool, float]:
        """Whether the last reload was successful, and when it was (Unix time)."""
        return not self._get(self._RELOAD_FAILED), self._times[self._RELOADED // _WORD]

    def note_reload(self, *, successful: bool) -> None:
        """In the process that reads the configuration: note that it has done so again."""
        self._set(self._RELOAD_FAILED, int(not successful))
        self._times[self._RELOADED // _WORD] = time.time()

    @property
    def certificate_expiry(self) -> float:
        """When the certificate expires that is served with (Unix time); 0: it is not TLS."""
        return self._times[self._EXPIRES // _WORD]

    @certificate_expiry.setter
    def certificate_expiry(self, at: float) -> None:
        self._times[self._EXPIRES // _WORD] = at

    # -- places --------------------------------------------------------------------------------

    def reserve(self, number: int) -> int:
        """Return a place that is nobody's, for the process of that number."""
        place = self._free.pop(0)
        self._set(self._at(place) + 8, number)
        return place

    @property
    def has_room(self) -> bool:
        """There are places to spare, beyond one for each worker that may have to be restarted."""
        return len(self._free) > self.places // 2

    def heartbeat(self, place: int) -> None:
        """In the process: tell that its main thread lives."""
        self._times[self._at(place) // _WORD] = time.monotonic()

    def last_beat(self, place: int) -> float:
        """Return when it last did (``time.monotonic``); 0 before the first time."""
        return self._times[self._at(place) // _WORD]

    def tell_serving(self, place: int) -> None:
        """In the process: tell that it accepts clients."""
        self._set(self._at(place) + 16, 1)

    def serves(self, place: int) -> bool:
        """Tell whether it has said so."""
        return bool(self._get(self._at(place) + 16))

    def write(self, place: int, vitals: Vitals, totals: Totals) -> None:
        """In the process: tell what it has done."""
        values = *_vitals_of(vitals), *_totals_of(totals)
        self._note(self._at(place) + self._STATE.size, values)

    def read(self, place: int) -> Account:
        """Return what a process has done."""
        return self._account(self._at(place) + self._STATE.size)

    def retire_slot(self, place: int, number: int) -> Account:
        """Return what a process has done that has ended; keep it, and free its place."""
        account, kept = self.read(place), self._past + number * self._DONE.size
        account.vitals.open = 0
        before = self._account(kept)
        values = [
            a + b
            for a, b in zip(
                (*_vitals_of(before.vitals), *_totals_of(before.totals)),
                (*_vitals_of(account.vitals), *_totals_of(account.totals)),
                strict=True,
            )
        ]
        self._set(self._CHANGES, self._get(self._CHANGES) + 1)  # odd: do not read now
        self._note(kept, values)
        start = self._at(place)
        self._memory[start : start + self._PLACE] = bytes(self._PLACE)
        self._set(self._CHANGES, self._get(self._CHANGES) + 1)
        self._free.append(place)
        return account

    def all(self) -> list[tuple[int, bool, Account]]:
        """Return number, whether it serves, and account of each process, of the past ones too."""
        for _ in range(_STILL):
            changes = self._get(self._CHANGES)
            found = list(self._all())
            if not changes % 2 and changes == self._get(self._CHANGES):
                break
        return found

    def _all(self) -> Iterator[tuple[int, bool, Account]]:
        for number in range(1, self.numbers + 1):
            yield number, False, self._account(self._past + number * self._DONE.size)
        for place in range(self.places):
            _, number, serves = self._STATE.unpack_from(self._memory, self._at(place))
            if number:
                yield number, bool(serves), self.read(place)

    def _note(self, at: int, values: Sequence[int]) -> None:
        self._memory[at : at + self._DONE.size] = self._DONE.pack(*values)

    def _account(self, at: int) -> Account:
        values: Any = self._DONE.unpack_from(self._memory, at)
        return Account(Vitals(*values[: len(_VITALS)]), Totals(*values[len(_VITALS) :]))

    def _at(self, place: int) -> int:
        return self._HEAD.size + place * self._PLACE

    def _get(self, at: int) -> int:
        return self._words[at // _WORD]

    def _set(self, at: int, value: int) -> None:
        self._words[at // _WORD] = value
