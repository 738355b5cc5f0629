"""How many connections may be open at a time: in one process, or over several."""

import mmap
import os
import threading
from contextlib import suppress
from typing import Protocol

from echoserver.system.shared_lock import SharedLock


class Slots(Protocol):
    """A number of slots, to be taken before a client is accepted."""

    limit: int
    """How many slots this process may hold."""

    def take(self) -> bool:
        """Take a slot; False if none is free."""

    def give(self) -> None:
        """Give one slot back."""

    @property
    def full(self) -> bool:
        """Whether this process holds as many slots as it may."""

    @property
    def exhausted(self) -> bool:
        """Whether no slot is free, here or in any other process."""

    @property
    def fd(self) -> int | None:
        """Readable when another process may have freed a slot; None: there is no other process."""


class LocalSlots:
    """The slots of a single process.

    Only the main flow takes them; any thread may give them back.
    """

    fd = None

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self.in_use = 0

    def take(self) -> bool:
        """Take a slot; False if none is free."""
        with self._lock:
            if self.in_use >= self.limit:
                return False
            self.in_use += 1
            return True

    def give(self) -> None:
        """Give one slot back."""
        with self._lock:
            self.in_use -= 1

    @property
    def full(self) -> bool:
        """Whether this process holds as many slots as it may."""
        return self.in_use >= self.limit

    exhausted = full  # no other process has any


class SlotTable:
    """How many of the slots that several processes share each of them holds.

    The table is in shared memory, with an account for each process. So what a process holds is
    known however it ends, and wiping its account is enough to free its slots. A `SharedLock` lets
    one process at a time read all accounts and write to its own.

    Args:
        accounts: How many processes there may be at a time.
        limit: How many slots they may hold together.
    """

    def __init__(self, accounts: int, limit: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, 8 * (1 + accounts))).cast("Q")  # MAP_SHARED
        self._memory[0] = limit
        self._lock = SharedLock("slots")
        self.released = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """A descriptor that is readable from the return of a slot until all are found in use."""

    @property
    def free(self) -> bool:
        """Whether there are free slots."""
        return sum(self._memory[1:]) < self._memory[0]

    def take(self, account: int) -> bool:
        """Take a slot; False if none is free."""
        with self._lock:
            if not self.free:
                return False
            self._memory[1 + account] += 1
            return True

    def give(self, account: int) -> None:
        """Give one slot back."""
        self._memory[1 + account] -= 1
        self.notify()

    def count(self, account: int) -> int:
        """Return how many slots a process holds."""
        return self._memory[1 + account]

    def wipe(self, account: int) -> None:
        """Give back all slots of a process that has ended."""
        self._memory[1 + account] = 0
        self.notify()

    def set_limit(self, limit: int) -> None:
        """Set the number of slots that the processes may hold together from now on."""
        self._memory[0] = limit
        self.notify()

    def notify(self) -> None:
        """Wake the processes that wait for a slot."""
        os.eventfd_write(self.released, 1)

    def clear_notification(self) -> None:
        """Make `released` unreadable, unless there is a free slot."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.released)
        if self.free:  # it came free just before that
            self.notify()

    def close(self) -> None:
        """Close the table's descriptors."""
        self._lock.close()
        os.close(self.released)


class SharedSlots:
    """The slots of one of several processes.

    Args:
        limit: How many slots this process may hold.
        table: The table of what all of them hold.
        account: This process's account in the table.
    """

    def __init__(self, limit: int, table: SlotTable, account: int) -> None:
        self.limit = limit
        self.fd = table.released
        self._slot_table = table
        self._account = account
        self._lock = threading.Lock()  # the table's lock is for processes, not threads

    def take(self) -> bool:
        """Take a slot; False if none is free, or this process may not hold more."""
        with self._lock:
            return not self.full and self._slot_table.take(self._account)

    def give(self) -> None:
        """Give one slot back."""
        with self._lock:
            self._slot_table.give(self._account)

    @property
    def full(self) -> bool:
        """Whether this process holds as many slots as it may."""
        return self._slot_table.count(self._account) >= self.limit

    @property
    def exhausted(self) -> bool:
        """Whether no slot is free in any process; until one is, `fd` is not readable."""
        if self._slot_table.free:
            return False
        self._slot_table.clear_notification()
        return not self._slot_table.free
