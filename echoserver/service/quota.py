"""How many connections each address has open, in one process or over several."""

import ipaddress
import mmap
import struct
import threading
from collections import Counter
from functools import lru_cache
from typing import Protocol

from echoserver.service.rules import address_of
from echoserver.system.shared_lock import SharedLock

_KEY_CACHE_SIZE = 4096  # addresses
_MAX_ADDRESSES = 1 << 17  # of one process

_NORESERVE = 0x4000  # mmap(2): MAP_NORESERVE, which Python names from 3.12 on

_QUOTA_BITS = 64  # bits of an IPv6 address: the smallest assignment to a site (RFC 6177)


class Quota(Protocol):
    """The number of connections that each address has open."""

    def take(self, peer: str, limit: int) -> bool:
        """Count one connection more for a peer's address; False if it has `limit` already."""

    def give(self, peer: str) -> None:
        """Count one connection less for a peer's address."""


@lru_cache(_KEY_CACHE_SIZE)
def quota_key(peer: str) -> bytes:
    """Return the key by which a peer is counted: its address, or the /64 of an IPv6 address."""
    address = address_of(peer)
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(12) + address.packed
    return address.packed[: _QUOTA_BITS // 8] + bytes(8)


class LocalQuota:
    """The connections of each address, in one process."""

    def __init__(self) -> None:
        self._open: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def take(self, peer: str, limit: int) -> bool:
        """Count one connection more for a peer's address; False if it has `limit` already."""
        key = quota_key(peer)
        with self._lock:
            if self._open[key] >= limit:
                return False
            self._open[key] += 1
            return True

    def give(self, peer: str) -> None:
        """Count one connection less for a peer's address."""
        key = quota_key(peer)
        with self._lock:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]


class AddressTable:
    """How many connections each address has in each of several processes, in shared memory.

    Each process has a table of its own to write to (hashed, with linear probing), so that what it
    has counted can be wiped when it has ended, however it ended. All tables are read and written
    under a `SharedLock`.

    Args:
        accounts: How many processes there may be at a time.
        max_connections: How many connections one of them may have. Beyond it, and beyond 131,072,
            a new address may find no place, and is turned away.
    """

    _ENTRY = struct.Struct("=16sQ")
    _ENTRY_COUNT = struct.Struct("=Q")

    def __init__(self, accounts: int, max_connections: int) -> None:
        self._places = 1 << (2 * min(max_connections, _MAX_ADDRESSES)).bit_length()
        size = self._ENTRY_COUNT.size + self._places * self._ENTRY.size
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        # Only pages that are written to take memory.
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE
        self._memory = mmap.mmap(-1, accounts * self._size, flags)
        self._accounts = accounts
        self._lock = SharedLock("addresses")

    def take(self, account: int, key: bytes, limit: int) -> bool:
        """Count one connection more in a process; False if all of them have `limit` already."""
        with self._lock:
            accounts = (one for one in range(self._accounts) if self._entry_count(one))
            if sum(self._find(one, key)[1] for one in accounts) >= limit:
                return False
            place, count = self._find(account, key)
            if not count:
                # A search ends at an empty place, so there must always be one.
                if self._entry_count(account) >= self._places - 1:
                    return False
                self._set_entry_count(account, self._entry_count(account) + 1)
            self._write(account, place, key, count + 1)
            return True

    def give(self, account: int, key: bytes) -> None:
        """Count one connection less for a peer's address."""
        with self._lock:
            place, count = self._find(account, key)
            if count > 1:
                self._write(account, place, key, count - 1)
            elif count:
                self._remove(account, place)
                self._set_entry_count(account, self._entry_count(account) - 1)

    def wipe(self, account: int) -> None:
        """Forget all connections that a process has counted, after its end."""
        # Without the lock, because a process that hangs may hold it. A process that counts
        # meanwhile may find more than there is, for the last time.
        if self._entry_count(account):
            start = account * self._size
            try:  # frees the memory, which then reads as zeros (madvise(2))
                self._memory.madvise(mmap.MADV_REMOVE, start, self._size)
            except OSError:  # not every kernel supports that
                self._memory[start : start + self._size] = bytes(self._size)

    def close(self) -> None:
        """Close the table's descriptor."""
        self._lock.close()

    def _entry_count(self, account: int) -> int:
        return int(self._ENTRY_COUNT.unpack_from(self._memory, account * self._size)[0])

    def _set_entry_count(self, account: int, count: int) -> None:
        self._ENTRY_COUNT.pack_into(self._memory, account * self._size, count)

    def _at(self, account: int, place: int) -> int:
        return account * self._size + self._ENTRY_COUNT.size + place * self._ENTRY.size

    def _read(self, account: int, place: int) -> tuple[bytes, int]:
        key, count = self._ENTRY.unpack_from(self._memory, self._at(account, place))
        return key, count

    def _write(self, account: int, place: int, key: bytes, count: int) -> None:
        self._ENTRY.pack_into(self._memory, self._at(account, place), key, count)

    def _first_place(self, key: bytes) -> int:
        return hash(key) & (self._places - 1)  # the same in all workers, which are forked

    def _find(self, account: int, key: bytes) -> tuple[int, int]:
        """Return the place where a key is, or would be, and its count."""
        place = self._first_place(key)
        while True:
            entry_key, count = self._read(account, place)
            if not count or entry_key == key:
                return place, count
            place = (place + 1) % self._places

    def _remove(self, account: int, hole: int) -> None:
        """Empty a place, and move up the keys that stand behind it because it was occupied."""
        place = hole
        while True:
            place = (place + 1) % self._places
            key, count = self._read(account, place)
            if not count:
                break
            if (place - self._first_place(key)) % self._places >= (place - hole) % self._places:
                self._write(account, hole, key, count)
                hole = place
        self._write(account, hole, bytes(16), 0)


class SharedQuota:
    """The quota of one of several processes.

    Args:
        table: The table in which all of them count.
        account: This process's account in the table.
    """

    def __init__(self, table: AddressTable, account: int) -> None:
        self._address_table = table
        self._account = account
        self._lock = threading.Lock()  # the table's lock is for processes, not threads

    def take(self, peer: str, limit: int) -> bool:
        """Count one connection more; False if the address has `limit`, over all processes."""
        with self._lock:
            return self._address_table.take(self._account, quota_key(peer), limit)

    def give(self, peer: str) -> None:
        """Count one connection less for a peer's address."""
        with self._lock:
            self._address_table.give(self._account, quota_key(peer))
