"""What the kernel knows about a server: /proc, from outside."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import echoserver
from loadtest.machine.sampler import Sampler
from tests.support import wire


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


def servers(pid: int) -> list[int]:
    """Return the processes that accept: the workers of a master, or the only one there is."""
    name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if b"--workers" not in name:
        return [pid]
    return [child.pid for child in psutil.Process(pid).children()]


def events(server: echoserver.SpawnedServer, name: str) -> list[dict[str, Any]]:
    """Return the lines of one event that have been read so far; the last may be on its way."""
    return [event for event in server.log if event["event"] == name]


def descriptors(pid: int) -> set[int]:
    """Return the open file descriptors of a process."""
    return {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}


def peers_of(pid: int) -> set[int]:
    """Return the ports of the clients that a process, or a descendant of it, serves."""
    ports = set()
    for process in tree(pid):
        with suppress(psutil.Error):
            remote: list[Any] = [one.raddr for one in process.net_connections("tcp")]
            ports |= {address.port for address in remote if address}  # a listener has none
    return ports


def stopped(pid: int) -> bool:
    """Wait until SIGSTOP, which takes effect some time after kill(2), has; tell whether it has."""
    return wire.eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def tell_all(pid: int, number: int) -> None:
    """Send a signal to a server's whole process tree."""
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def state(pid: int) -> State:
    """Count what a server holds."""
    processes = tree(pid)
    held = threads = zombies = 0
    for process in processes:
        with suppress(psutil.Error, OSError):
            zombies += process.status() == psutil.STATUS_ZOMBIE
            threads += process.num_threads()
            held += len(descriptors(process.pid))
    return State(held, threads, len(processes) - 1, zombies)


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
