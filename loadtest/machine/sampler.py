"""The sampler, which watches the processes of a server, and what they use."""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Self

from echoserver.system.schedstat import ThreadTime
from loadtest.machine import sockets
from loadtest.machine.processes import (
    Key,
    Process,
    Table,
    ancestors,
    cpu_ns,
    descendants,
    now_in_ticks,
    program,
    table,
    thread_times,
)
from loadtest.machine.usage import Peaks, Usage, WatchedProcesses, pss_bytes

_SAMPLE_INTERVAL = 0.5  # seconds; each sample costs the client's core some time

_MAX_SAMPLES = 4  # at most, until no process ends during one

_SERVICE_MANAGERS = frozenset({"systemd", "init", "launchd", "xinetd", "inetd"})
"""They keep the sockets that they pass on to services, and all processes descend from them."""


@dataclass(slots=True)
class _Account:
    """The CPU time of one process, as far as it was seen; the account outlives the process.

    A process that is waited for adds its CPU time to its parent's `waited_ns`. So that nothing
    counts twice, `settled_ns` is the part of it that has an account here, too.
    """

    parent: int
    name: str
    program: str
    earlier_ns: int = 0
    """CPU time from before it was watched."""
    own_ns: int = 0
    waited_ns: int = 0
    settled_ns: int = 0
    unseen_ns: int = 0
    """CPU time of children that ended between two samples: the rest of `waited_ns`."""
    alive: bool = True
    gone: bool = False
    """It has been waited for, so not even a zombie is left."""

    @property
    def used_ns(self) -> int:
        return self.own_ns + self.unseen_ns - self.earlier_ns


class Sampler:
    """Watches the processes of a server as they come and go.

    These are the process that was started, those that hold the socket that listens on an address,
    and all their descendants. Once watched, a process is still watched when its parent ends; when
    it ends itself, its CPU time stays in the sum.

    Args:
        pid: The server's process, if we have started it.
        address: Where the server listens. On another machine, no process holds it.
    """

    def __init__(self, pid: int | None = None, address: tuple[str, int] | None = None) -> None:
        self.peaks = Peaks()
        self.holders: set[Key] = set()
        """Processes that were seen to hold the listening socket."""
        self._pid = pid
        self._root: Key | None = None
        self._address = sockets.ListeningAddress(*address) if address else None
        self._accounts: dict[Key, _Account] = {}
        self._non_holders: set[Key] = set()  # processes that do not hold the socket
        self._inodes: frozenset[int] = frozenset()
        self._most_processes: Counter[str] = Counter()
        self._start_ticks = now_in_ticks()
        self._is_first_sample = True
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)
        self.look()

    # -- figures ---------------------------------------------------------------------------------

    @property
    def server_processes(self) -> WatchedProcesses | None:
        """The processes that the figures are of; None if there is none."""
        return (
            WatchedProcesses(dict(self._most_processes), self._pid is None)
            if self._most_processes
            else None
        )

    def has_ended(self) -> bool:
        """Tell whether there was a server and it has ended.

        It has ended when none of its processes lives, or none that holds, or held, its listening
        socket.
        """
        living = {one.key for one in self._sample()}
        with self._lock:
            if not self._accounts:
                return False
            if not living:
                return True
            if not self.holders or living & self.holders:
                return False
            snapshot = table()  # another process may hold the socket now
            self._non_holders.clear()
            self.holders |= self._new_holders(snapshot, set())
            return not any(_is_there(key, snapshot) for key in self.holders)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the processes have used so far, those that ended included."""
        return self.usage().seconds

    def usage(self) -> Usage:
        """Return the CPU time that the processes have used so far, those that ended included."""
        living = self._sample(_MAX_SAMPLES)
        threads: dict[int, ThreadTime] = {}
        for one in living:
            threads |= thread_times(one.pid)
        with self._lock:
            used_ns = sum(one.used_ns for one in self._accounts.values())
        return Usage(time.monotonic(), used_ns / 1e9, threads)

    def pss_bytes(self, *, files: bool = True) -> int | None:
        """Return the memory in use, each shared page counted once; None if unknown.

        Args:
            files: Count the pages of files, such as libraries, as well. Their share changes
                whenever any program that uses the same library starts or ends.
        """
        return pss_bytes(self._sample(), files=files)

    def look(self) -> None:
        """Update the accounts and the peaks."""
        self._sample()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_INTERVAL):
            self.look()

    # -- membership ------------------------------------------------------------------------------

    def _sample(self, max_samples: int = 1) -> list[Process]:
        """Update the accounts and the peaks; return the living processes.

        Args:
            max_samples: How often to sample, at most, until the CPU time of every process is known;
                if it is more than one, what is still unknown in the last sample is decided.
        """
        with self._lock:
            if max_samples > 1 and not self.holders:
                self._non_holders.clear()
            is_exact, is_complete = max_samples > 1, False
            while max_samples and not is_complete:
                max_samples -= 1
                snapshot = table()
                members = self._members(snapshot)
                is_complete = self._update_accounts(
                    snapshot, members, decide=is_exact and not max_samples
                )
            living = [one for one in members if not one.zombie]
            self._is_first_sample = False
            if len(living) > self._most_processes.total():
                accounts = (self._accounts.get(one.key) for one in living)
                self._most_processes = Counter(account.program for account in accounts if account)
            peaks = self.peaks
            peaks.rss_bytes = max(peaks.rss_bytes, sum(one.rss_bytes for one in living))
            peaks.threads = max(peaks.threads, sum(one.threads for one in living))
            peaks.processes = max(peaks.processes, len(living))
        return living

    def _members(self, snapshot: Table) -> list[Process]:
        """Return the processes of the server."""
        processes = snapshot.processes
        if self._pid is not None and self._root is None and (root := processes.get(self._pid)):
            self._root = root.key
        seeds = {key for key in (*self._accounts, self._root) if key and _is_there(key, snapshot)}
        members = descendants((key.pid for key in seeds), snapshot)
        new = self._new_holders(snapshot, members)
        self.holders |= new
        members |= descendants((key.pid for key in new), snapshot)
        return [processes[pid] for pid in members]

    def _new_holders(self, snapshot: Table, members: set[int]) -> set[Key]:
        """Return the holders of the listening socket, among the processes not yet examined for it.

        Service managers do not count, nor do our own ancestors: their other descendants are not the
        server.

        Args:
            snapshot: All processes.
            members: The server's processes. One holder among them is enough.
        """
        inodes = self._address.inodes() if self._address else frozenset()
        if inodes - self._inodes:  # there is a new listening socket
            self._non_holders.clear()
        self._inodes = inodes
        candidates = {
            one.key
            for one in snapshot.processes.values()
            if one.key not in self._non_holders and not (self.holders and one.pid in members)
        }
        self._non_holders |= candidates
        holder_pids = sockets.holders(inodes, (key.pid for key in candidates))
        own_ancestors = ancestors(os.getpid(), snapshot) if holder_pids else set()
        return {
            key
            for key in candidates
            if key.pid in holder_pids
            and key.pid not in own_ancestors
            and snapshot.processes[key.pid].name not in _SERVICE_MANAGERS
        }

    # -- CPU time --------------------------------------------------------------------------------

    def _update_accounts(self, snapshot: Table, members: list[Process], *, decide: bool) -> bool:
        """Update the accounts of processes; tell whether the CPU time of all of them is known.

        The CPU time of a process is on its own clock until it has been waited for, and in its
        parent's sum from then on. The sums are read before the clocks here. If a process was gone
        before, its parent's sum includes it; if its clock can still be read, the sum does not. If
        it was there and is gone now, that is unknown.

        Args:
            snapshot: All processes.
            members: The server's processes.
            decide: Assume that the sum includes what is unknown, which at worst is too little.
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
                if one.key.start < self._start_ticks and not self._is_first_sample:
                    account.earlier_ns = own_ns + one.waited_ns
            if account.name != one.name:  # it may have executed another program
                account.name, account.program = one.name, program(one)
            account.parent, account.alive = one.parent, not one.zombie
            account.own_ns = max(account.own_ns, own_ns)
            account.waited_ns = one.waited_ns
        gone_keys = {
            key
            for key, account in self._accounts.items()
            if not (account.gone or _is_there(key, snapshot))
        }
        unclear |= {
            key for key in gone_keys if key.pid in snapshot.pids - snapshot.processes.keys()
        }
        if decide:
            gone_keys |= unclear
        elif unclear:
            return False
        self._close_accounts(gone_keys, snapshot)
        return True

    def _close_accounts(self, gone_keys: set[Key], snapshot: Table) -> None:
        """Close the accounts of processes that are gone: their parents' sums now include them."""
        for key in gone_keys:
            account = self._accounts[key]
            account.gone, account.alive = True, False
            parent_process = snapshot.processes.get(account.parent)
            if parent_process and (parent := self._accounts.get(parent_process.key)):
                parent.settled_ns += account.own_ns + account.waited_ns
        for account in self._accounts.values():
            unseen_ns = account.waited_ns - account.settled_ns
            account.unseen_ns = max(account.unseen_ns, unseen_ns)


def _is_there(key: Key, snapshot: Table) -> bool:
    one = snapshot.processes.get(key.pid)
    return one is not None and one.key == key
