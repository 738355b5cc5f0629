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
    """How many this process may hold."""

    def take(self) -> bool:
        """Take one; False where none is free."""

    def give(self) -> None:
        """Give one slot back."""

    @property
    def full(self) -> bool:
        """This process holds as many as it may."""

    @property
    def exhausted(self) -> bool:
        """None is free, here or in any other process."""

    @property
    def fd(self) -> int | None:
        """Readable when one may have come free elsewhere; None: nobody else has any."""


class LocalSlots:
    """Slots of one process. Only the main flow takes them; any thread may give them back."""

    fd = None

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self.taken = 0

    def take(self) -> bool:
        """Take one; False where none is free."""
        with self._lock:
            if self.taken >= self.limit:
                return False
            self.taken += 1
            return True

    def give(self) -> None:
        """Give one slot back."""
        with self._lock:
            self.taken -= 1

    @property
    def full(self) -> bool:
        """This process holds as many as it may."""
        return self.taken >= self.limit

    exhausted = full  # nobody else has any


class SlotTable:
    """Who holds how many of the slots that several processes share.

    It is kept in shared memory, an account for each process: what a process holds is known
    however it ends, and nothing has to be made good but by wiping its account. A `SharedLock` lets
    one at a time look at all accounts and write to its own.

    Args:
        accounts: How many processes there may be at a time.
        limit: How many slots they may hold together.
    """

    def __init__(self, accounts: int, limit: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, 8 * (1 + accounts))).cast("Q")  # MAP_SHARED
        self._memory[0] = limit
        self._lock = SharedLock("slots")
        self.released = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable since someone has given a slot back, until someone finds them all taken."""

    @property
    def free(self) -> bool:
        """There are slots that nobody holds."""
        return sum(self._memory[1:]) < self._memory[0]

    def take(self, account: int) -> bool:
        """Take a slot; False where none is free."""
        with self._lock:
            if not self.free:
                return False
            self._memory[1 + account] += 1
            return True

    def give(self, account: int) -> None:
        """Give one slot back."""
        self._memory[1 + account] -= 1
        self.notify()

    def held(self, account: int) -> int:
        """Return how many a process holds."""
        return self._memory[1 + account]

    def wipe(self, account: int) -> None:
        """Give back all that a process held, which has ended."""
        self._memory[1 + account] = 0
        self.notify()

    def set_limit(self, limit: int) -> None:
        """Let them hold so many from now on."""
        self._memory[0] = limit
        self.notify()

    def notify(self) -> None:
        """Wake the processes that wait for a slot."""
        os.eventfd_write(self.released, 1)

    def clear_notification(self) -> None:
        """Let the released be silent, unless there is a slot for which it rang."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.released)
        if self.free:  # given back just before that
            self.notify()

    def close(self) -> None:
        """Close the table's descriptors."""
        self._lock.close()
        os.close(self.released)


class SharedSlots:
    """Slots of one of several processes.

    Args:
        limit: How many this process may hold.
        table: What all of them hold.
        account: This process's in it.
    """

    def __init__(self, limit: int, table: SlotTable, account: int) -> None:
        self.limit = limit
        self.fd = table.released
        self._slot_table = table
        self._account = account
        self._lock = threading.Lock()  # the kernel's knows processes, not threads

    def take(self) -> bool:
        """Take one; False where none is free, here or at all."""
        with self._lock:
            return not self.full and self._slot_table.take(self._account)

    def give(self) -> None:
        """Give one slot back."""
        with self._lock:
            self._slot_table.give(self._account)

    @property
    def full(self) -> bool:
        """This process holds as many as it may."""
        return self._slot_table.held(self._account) >= self.limit

    @property
    def exhausted(self) -> bool:
        """None is free in any process; until one is, `fd` is not readable."""
        if self._slot_table.free:
            return False
        self._slot_table.clear_notification()
        return not self._slot_table.free
