"""What the kernel knows about a server: /proc, from outside."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtest.sampler import Sampler


@dataclass(frozen=True)
class State:
    """What must come back to where it was."""

    descriptors: int
    threads: int
    children: int
    zombies: int


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def state(pid: int) -> State:
    """Count what a server holds."""
    processes = tree(pid)
    zombies = 0
    for process in processes:
        with suppress(psutil.Error):
            zombies += process.status() == psutil.STATUS_ZOMBIE
    return State(
        descriptors=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        threads=processes[0].num_threads(),
        children=len(processes) - 1,
        zombies=zombies,
    )


def settled(pid: int, seconds: float = 0.2) -> State:
    """Return what a server holds once that has not changed for a while."""
    last, since = state(pid), time.monotonic()
    deadline = since + 10
    while time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, f"it does not settle: {last}"
        time.sleep(0.02)
        if (now := state(pid)) != last:
            last, since = now, time.monotonic()
    return last


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a server's whole process tree."""
    return Sampler(pid).cpu_seconds()


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a server's whole process tree."""
    total = 0
    for process in tree(pid):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def session(sid: int) -> list[int]:
    """Return the living processes of a session, those whose parent is gone included."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.getsid(int(entry.name)) == sid and not _is_zombie(int(entry.name)):
                    members.append(int(entry.name))
    return members


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
