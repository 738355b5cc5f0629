"""A server's processes, watched as they come and go: what they use, and who they are."""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Self

from loadtest.machine import sockets
from loadtest.machine.processes import (
    Key,
    Process,
    Table,
    ThreadTime,
    ancestors,
    cpu_ns,
    descendants,
    now_in_ticks,
    program,
    table,
    thread_times,
)
from loadtest.machine.usage import Peaks, Usage, Watched, pss_bytes

_PERIOD = 0.5  # seconds between two looks; each costs the client's core some time

_LOOKS = 4  # at most, until one has seen no process end under it

_SERVICE_MANAGERS = frozenset({"systemd", "init", "launchd", "xinetd", "inetd"})
"""They keep the sockets that they hand to others, and everything runs below them."""


@dataclass(slots=True)
class _Account:
    """What one process has used, as far as was seen; it stays when the process is gone.

    A process that is waited for adds its CPU time to its parent's `waited_ns`. So that nothing
    counts twice, `settled_ns` is the part of it that has an account here, too.
    """

    parent: int
    name: str
    program: str
    earlier_ns: int = 0
    """Used before it was watched."""
    own_ns: int = 0
    waited_ns: int = 0
    settled_ns: int = 0
    unseen_ns: int = 0
    """Of children that ended between two looks: what is left of `waited_ns`."""
    alive: bool = True
    gone: bool = False
    """It has been waited for: even a zombie lives no more."""

    @property
    def used_ns(self) -> int:
        return self.own_ns + self.unseen_ns - self.earlier_ns


class Sampler:
    """Watches the processes of a server as they come and go.

    These are the process that was started, those that hold the socket that listens on an address,
    and all below them. Once watched, a process stays so when its parent ends; when it ends itself,
    what it had used stays in the sum.

    Args:
        pid: The server's process, where we have started it.
        address: Where the server listens. If that is not on this machine, nothing is found by it.
    """

    def __init__(self, pid: int | None = None, address: tuple[str, int] | None = None) -> None:
        self.peaks = Peaks()
        self.holders: set[Key] = set()
        """Processes that were seen to hold the listening socket."""
        self._pid = pid
        self._root: Key | None = None
        self._address = sockets.ListeningAddress(*address) if address else None
        self._accounts: dict[Key, _Account] = {}
        self._searched: set[Key] = set()  # they do not hold it
        self._inodes: frozenset[int] = frozenset()
        self._most: Counter[str] = Counter()
        self._begun = now_in_ticks()
        self._first_look = True
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)
        self.look()

    # -- what was seen ---------------------------------------------------------------------------

    @property
    def watched(self) -> Watched | None:
        """Whose figures they are; None where no process was found."""
        return Watched(dict(self._most), self._pid is None) if self._most else None

    def has_ended(self) -> bool:
        """Tell whether there was a server of which nothing is left.

        That is so when none of its processes lives, or none that has, or had, its listening socket.
        """
        living = {one.key for one in self._take()}
        with self._lock:
            if not self._accounts:
                return False
            if not living:
                return True
            if not self.holders or living & self.holders:
                return False
            found = table()  # perhaps somebody else has the socket now
            self._searched.clear()
            self.holders |= self._new_holders(found, set())
            return not any(_is_there(key, found) for key in self.holders)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the processes have used so far, those that ended included."""
        return self.usage().seconds

    def usage(self) -> Usage:
        """Return the CPU time that the processes have used so far, those that ended included."""
        living = self._take(_LOOKS)
        threads: dict[int, ThreadTime] = {}
        for one in living:
            threads |= thread_times(one.pid)
        with self._lock:
            used = sum(one.used_ns for one in self._accounts.values())
        return Usage(time.monotonic(), used / 1e9, threads)

    def pss_bytes(self, *, files: bool = True) -> int | None:
        """Return the memory in use, each shared page counted once; None where it cannot be told.

        Args:
            files: With the pages of files, such as libraries. Their share changes whenever any
                program that uses the same library starts or ends.
        """
        return pss_bytes(self._take(), files=files)

    def look(self) -> None:
        """Take the present values into the accounts and the peaks."""
        self._take()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_PERIOD):
            self.look()

    # -- who belongs to it -----------------------------------------------------------------------

    def _take(self, looks: int = 1) -> list[Process]:
        """Take the present values into the accounts and the peaks; return the living processes.

        Args:
            looks: How often to look, at most, until what was used is known of all; if it is more
                than one, what is not known then is decided.
        """
        with self._lock:
            if looks > 1 and not self.holders:
                self._searched.clear()
            exact, clear = looks > 1, False
            while looks and not clear:
                looks -= 1
                found = table()
                members = self._members(found)
                clear = self._read(found, members, decide=exact and not looks)
            living = [one for one in members if not one.zombie]
            self._first_look = False
            if len(living) > self._most.total():
                known = (self._accounts.get(one.key) for one in living)
                self._most = Counter(account.program for account in known if account)
            peaks = self.peaks
            peaks.rss_bytes = max(peaks.rss_bytes, sum(one.rss_bytes for one in living))
            peaks.threads = max(peaks.threads, sum(one.threads for one in living))
            peaks.processes = max(peaks.processes, len(living))
        return living

    def _members(self, found: Table) -> list[Process]:
        """Return the processes of the server."""
        present = found.processes
        if self._pid is not None and self._root is None and (root := present.get(self._pid)):
            self._root = root.key
        seeds = {key for key in (*self._accounts, self._root) if key and _is_there(key, found)}
        members = descendants((key.pid for key in seeds), found)
        new = self._new_holders(found, members)
        self.holders |= new
        members |= descendants((key.pid for key in new), found)
        return [present[pid] for pid in members]

    def _new_holders(self, found: Table, members: set[int]) -> set[Key]:
        """Return who holds the listening socket, of those that were not searched for it yet.

        A service manager does not count, nor does a process that we run below: what else is below
        them is not the server.

        Args:
            found: All processes.
            members: The server's. One of these will do, which most often is the first.
        """
        inodes = self._address.inodes() if self._address else frozenset()
        if inodes - self._inodes:  # it listens on a new one
            self._searched.clear()
        self._inodes = inodes
        new = {
            one.key
            for one in found.processes.values()
            if one.key not in self._searched and not (self.holders and one.pid in members)
        }
        self._searched |= new
        holding = sockets.holders(inodes, (key.pid for key in new))
        above_us = ancestors(os.getpid(), found) if holding else set()
        return {
            key
            for key in new
            if key.pid in holding
            and key.pid not in above_us
            and found.processes[key.pid].name not in _SERVICE_MANAGERS
        }

    # -- what they have used ---------------------------------------------------------------------

    def _read(self, found: Table, members: list[Process], *, decide: bool) -> bool:
        """Take what processes have used into their accounts; tell whether it is known of all.

        What a process has used is on its own clock until it has been waited for, and in its
        parent's sum from then on. The sums were read before the clocks here: of a process that was
        gone before, its parent's sum has it; of one whose clock can still be read, it has not. Of
        one that was there and is gone now, it cannot be told.

        Args:
            found: All processes.
            members: The server's.
            decide: Then take the sum to have it, which at worst is too little.
        """
        unclear: set[Key] = set()
        for one in members:
            account = self._accounts.get(one.key)
            try:
                own_ns = cpu_ns(one.pid)
            except OSError:
                if account:
                    unclear.add(one.key)
                continue
            if account is None:
                account = self._accounts[one.key] = _Account(one.parent, "", "")
                if one.key.start < self._begun and not self._first_look:
                    account.earlier_ns = own_ns + one.waited_ns
            if account.name != one.name:  # it has become another program, perhaps
                account.name, account.program = one.name, program(one)
            account.parent, account.alive = one.parent, not one.zombie
            account.own_ns = max(account.own_ns, own_ns)
            account.waited_ns = one.waited_ns
        gone = {
            key
            for key, account in self._accounts.items()
            if not (account.gone or _is_there(key, found))
        }
        unclear |= {key for key in gone if key.pid in found.listed - found.processes.keys()}
        if decide:
            gone |= unclear
        elif unclear:
            return False
        self._close(gone, found)
        return True

    def _close(self, gone: set[Key], found: Table) -> None:
        """Close the accounts of those that are gone: their parents' sums have it, too, now."""
        for key in gone:
            account = self._accounts[key]
            account.gone, account.alive = True, False
            above = found.processes.get(account.parent)
            if above and (parent := self._accounts.get(above.key)):
                parent.settled_ns += account.own_ns + account.waited_ns
        for account in self._accounts.values():
            left = account.waited_ns - account.settled_ns
            account.unseen_ns = max(account.unseen_ns, left)


def _is_there(key: Key, found: Table) -> bool:
    one = found.processes.get(key.pid)
    return one is not None and one.key == key
