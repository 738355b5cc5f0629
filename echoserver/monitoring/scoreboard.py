"""The scoreboard: what a server's processes tell each other, in shared memory.

Shared memory keeps what a process wrote, however that process ends.
"""

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
_WORD_SIZE = 8  # bytes
_MAX_READS = 100  # attempts to read accounts that do not change meanwhile


def worker_count(config: Config) -> int:
    """Return how many processes serve at a time."""
    if isinstance(config.workers, int):
        return config.workers
    return len(os.sched_getaffinity(0)) if config.workers else 1


@dataclass(frozen=True, slots=True)
class Account:
    """The vitals and totals of one process."""

    vitals: Vitals
    totals: Totals


class Scoreboard:
    """Places for the processes that serve, each of which writes to its own place only.

    Readers never see half of an integer, because each is aligned, and copied at once. (Unlike that,
    `struct.pack_into` clears the place first.)

    Args:
        places: How many processes there may be at a time.
        workers: How many workers there are. They are numbered from 1, and a successor has the
            number of the worker that it replaces.
    """

    _HEAD = struct.Struct("=QQQQQQQdd")  # see the offsets below
    _DRAINS, _CHANGES, _QUEUE, _QUEUE_LIMIT, _LOST_LINES, _RESTARTS = range(0, 48, 8)
    _RELOAD_FAILED, _RELOAD_TIME, _EXPIRY = range(48, 72, 8)
    _STATE = struct.Struct("=dQQ")  # time of the last heartbeat, worker number, whether it serves
    _COUNTS = struct.Struct(f"={len(_VITALS) + len(_TOTALS)}Q")
    _PLACE_SIZE = _STATE.size + _COUNTS.size

    def __init__(self, places: int, workers: int) -> None:
        self.places, self.workers = places, workers
        self._history = self._HEAD.size + places * self._PLACE_SIZE  # counts of former workers
        size = self._history + (workers + 1) * self._COUNTS.size
        self._memory = mmap.mmap(-1, size)  # shared (MAP_SHARED)
        self._words = memoryview(self._memory).cast("Q")
        self._times = memoryview(self._memory).cast("d")
        self._free = list(range(places))
        self.record_reload(successful=True)  # the start counts as the first one

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return a scoreboard for a server, with room for the successors of its workers."""
        count = worker_count(config)
        return cls(8 * count + 64 if config.workers else 1, count)

    # -- about the whole server ----------------------------------------------------------------

    @property
    def everyone_drains(self) -> bool:
        """Whether every process was told, or is about to be told, to drain."""
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
    def lost_lines(self) -> int:
        """How many lines the access log's file did not take."""
        return self._get(self._LOST_LINES)

    def count_lost_lines(self, lines: int) -> None:
        """Count lines that the file did not take, in the process that writes the access log."""
        self._set(self._LOST_LINES, self.lost_lines + lines)

    @property
    def restarts(self) -> int:
        """How many workers were started to replace one that had died."""
        return self._get(self._RESTARTS)

    def count_restart(self) -> None:
        """Count a restart of a worker, in the master."""
        self._set(self._RESTARTS, self.restarts + 1)

    @property
    def last_reload(self) -> tuple[bool, float]:
        """Whether the last reload was successful, and when it was (Unix time)."""
        return not self._get(self._RELOAD_FAILED), self._times[self._RELOAD_TIME // _WORD_SIZE]

    def record_reload(self, *, successful: bool) -> None:
        """Record a reload, in the process that reads the configuration."""
        self._set(self._RELOAD_FAILED, int(not successful))
        self._times[self._RELOAD_TIME // _WORD_SIZE] = time.time()

    @property
    def certificate_expiry(self) -> float:
        """When the server's certificate expires (Unix time); 0: it does not serve TLS."""
        return self._times[self._EXPIRY // _WORD_SIZE]

    @certificate_expiry.setter
    def certificate_expiry(self, at: float) -> None:
        self._times[self._EXPIRY // _WORD_SIZE] = at

    # -- places --------------------------------------------------------------------------------

    def reserve(self, number: int) -> int:
        """Return a free place, for the process with that number."""
        place = self._free.pop(0)
        self._set(self._at(place) + 8, number)
        return place

    @property
    def has_room(self) -> bool:
        """Whether places are left beyond those for workers that may have to be restarted."""
        return len(self._free) > self.places // 2

    def heartbeat(self, place: int) -> None:
        """Record, in a serving process, that its main thread is alive."""
        self._times[self._at(place) // _WORD_SIZE] = time.monotonic()

    def last_beat(self, place: int) -> float:
        """Return the time of the last heartbeat (``time.monotonic``); 0 before the first one."""
        return self._times[self._at(place) // _WORD_SIZE]

    def mark_serving(self, place: int) -> None:
        """Record, in a serving process, that it accepts clients."""
        self._set(self._at(place) + 16, 1)

    def serves(self, place: int) -> bool:
        """Tell whether the process at a place accepts clients."""
        return bool(self._get(self._at(place) + 16))

    def write(self, place: int, vitals: Vitals, totals: Totals) -> None:
        """Publish a process's vitals and totals, in that process."""
        values = *_vitals_of(vitals), *_totals_of(totals)
        self._write_counts(self._at(place) + self._STATE.size, values)

    def read(self, place: int) -> Account:
        """Return the account of the process at a place."""
        return self._account(self._at(place) + self._STATE.size)

    def retire_slot(self, place: int, number: int) -> Account:
        """Move the account of a process that has ended to the history, and free its place.

        Returns:
            The account.
        """
        account, history = self.read(place), self._history + number * self._COUNTS.size
        account.vitals.open = 0
        before = self._account(history)
        values = [
            a + b
            for a, b in zip(
                (*_vitals_of(before.vitals), *_totals_of(before.totals)),
                (*_vitals_of(account.vitals), *_totals_of(account.totals)),
                strict=True,
            )
        ]
        self._set(self._CHANGES, self._get(self._CHANGES) + 1)  # odd: readers must try again
        self._write_counts(history, values)
        start = self._at(place)
        self._memory[start : start + self._PLACE_SIZE] = bytes(self._PLACE_SIZE)
        self._set(self._CHANGES, self._get(self._CHANGES) + 1)
        self._free.append(place)
        return account

    def accounts(self) -> list[tuple[int, bool, Account]]:
        """Return the number of each process, whether it serves, and its account.

        For each number there is one more account, of all the processes with it that have ended.
        """
        for _ in range(_MAX_READS):
            changes = self._get(self._CHANGES)
            accounts = list(self._accounts())
            if not changes % 2 and changes == self._get(self._CHANGES):
                break
        return accounts

    def _accounts(self) -> Iterator[tuple[int, bool, Account]]:
        for number in range(1, self.workers + 1):
            yield number, False, self._account(self._history + number * self._COUNTS.size)
        for place in range(self.places):
            _, number, serves = self._STATE.unpack_from(self._memory, self._at(place))
            if number:
                yield number, bool(serves), self.read(place)

    def _write_counts(self, at: int, values: Sequence[int]) -> None:
        self._memory[at : at + self._COUNTS.size] = self._COUNTS.pack(*values)

    def _account(self, at: int) -> Account:
        values: Any = self._COUNTS.unpack_from(self._memory, at)
        return Account(Vitals(*values[: len(_VITALS)]), Totals(*values[len(_VITALS) :]))

    def _at(self, place: int) -> int:
        return self._HEAD.size + place * self._PLACE_SIZE

    def _get(self, at: int) -> int:
        return self._words[at // _WORD_SIZE]

    def _set(self, at: int, value: int) -> None:
        self._words[at // _WORD_SIZE] = value
