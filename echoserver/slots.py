"""How many connections may be open at a time: in one process, or over several."""

import os
import select
import threading
from typing import Protocol


class Slots(Protocol):
    """A number of slots, to be taken before a client is accepted."""

    limit: int
    """How many this process may hold."""

    def take(self) -> bool:
        """Take one; False where none is free."""

    def give(self) -> None:
        """Give one back."""

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
        """Give one back."""
        with self._lock:
            self.taken -= 1

    @property
    def full(self) -> bool:
        """This process holds as many as it may."""
        return self.taken >= self.limit

    exhausted = full  # nobody else has any


class SharedSlots:
    """Slots of several processes: a semaphore that each of them can wait for (eventfd(2)).

    Args:
        limit: How many this process may hold.
        semaphore: An eventfd, opened with EFD_SEMAPHORE, that counts those that are free.
    """

    def __init__(self, limit: int, semaphore: int) -> None:
        self._local = LocalSlots(limit)
        self.limit = limit
        self.fd = semaphore

    @staticmethod
    def semaphore(count: int) -> int:
        """Return the descriptor of a semaphore with `count` free slots."""
        return os.eventfd(count, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def take(self) -> bool:
        """Take one; False where none is free, here or at all."""
        if not self._local.take():
            return False
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            self._local.give()
            return False
        return True

    @property
    def held(self) -> int:
        """How many this process has."""
        return self._local.taken

    def give(self) -> None:
        """Give one back."""
        self._local.give()
        os.eventfd_write(self.fd, 1)

    @property
    def full(self) -> bool:
        """This process holds as many as it may."""
        return self._local.full

    @property
    def exhausted(self) -> bool:
        """None is free in any process."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)
