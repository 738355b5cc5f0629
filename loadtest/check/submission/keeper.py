"""Runs one command that is not trusted, and sees to it that nothing of it survives.

A process of its own between the grader and what it grades. All that the command starts, and
whatever that starts, stays below it, even what detaches itself (prctl(2), PR_SET_CHILD_SUBREAPER);
so when the grader asks, or is gone, however it went, everything can be found and killed. Besides,
it reads what the command prints, so that a server that logs without end never waits for a reader,
and costs the grader nothing.

The grader holds the other end of a socket: a line of JSON from there is what to run (`Order`),
later ones are requests; each line from here is something that happened.
"""

import ctypes
import json
import os
import pwd
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KEPT = 64 << 10  # bytes of output
_LONGEST_FILE = 256 << 20  # bytes; a log written to a file must not fill the disk
_LOOK = 0.2  # seconds between two looks at memory
_GIVE_UP = 20.0  # seconds of killing


@dataclass(frozen=True, slots=True)
class Order:
    """What to run, and within which limits; None: none of its own."""

    command: list[str]
    environment: dict[str, str]
    memory: int | None = None
    """Bytes of all its processes together; beyond it, they are killed."""
    nofile: int | None = None
    """Descriptors of each process."""
    nproc: int | None = None
    """Processes and threads of its user, as setrlimit(2) counts them."""
    user: str | None = None

    def as_line(self) -> bytes:
        """Return what is sent to the keeper."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Subreaper:
    """Keeps what one order started."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._requests = control.makefile("rb", buffering=0)
        self._said = bytearray()
        self._pid = 0
        self._memory: int | None = None

    def run(self) -> None:
        """Carry out the order, and requests, until the grader is gone or wants an end."""
        libc = become_subreaper()
        # The grader may be interrupted from the keyboard, or stopped: we are needed until it ends.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        awake, alarm = os.pipe()
        for end in (awake, alarm):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        order = Order(**json.loads(self._requests.readline()))
        self._memory = order.memory
        try:
            output = self._start(order, libc)
            self._watch(output, awake)
        finally:
            end_all()

    def _start(self, order: Order, libc: Any) -> int:
        def limit() -> None:
            # However the keeper ends, what it keeps does, too.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limits = {
                resource.RLIMIT_FSIZE: _LONGEST_FILE,
                resource.RLIMIT_NOFILE: order.nofile,
                resource.RLIMIT_NPROC: order.nproc,
            }
            for which, most in limits.items():
                if most is not None:
                    hard = resource.getrlimit(which)[1]
                    if hard != resource.RLIM_INFINITY:
                        most = min(most, hard)  # noqa: PLW2901 - never more than is allowed
                    resource.setrlimit(which, (most, most))

        output, theirs = os.pipe()
        who: dict[str, Any] = {}
        entry = pwd.getpwnam(order.user) if order.user is not None else None
        if entry is not None and entry.pw_uid != os.geteuid():
            groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
            who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
            order.environment["HOME"] = entry.pw_dir
        try:
            process = subprocess.Popen(
                order.command,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
                env=order.environment,
                preexec_fn=limit,  # noqa: PLW1509 - no thread runs here
                **who,
            )
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._tell(failed=f"cannot start {order.command[0]}: {reason}")
            raise SystemExit(1) from None
        os.close(theirs)
        self._pid = process.pid
        process.returncode = 0  # we collect it ourselves, with everyone else
        self._tell(started=self._pid)
        return output

    def _watch(self, output: int, awake: int) -> None:
        self._selector.register(self._control, selectors.EVENT_READ, "control")
        self._selector.register(output, selectors.EVENT_READ, "output")
        self._selector.register(awake, selectors.EVENT_READ, "awake")
        look = time.monotonic() + _LOOK
        while True:
            timeout = None if self._memory is None else max(0.0, look - time.monotonic())
            for key, _ in self._selector.select(timeout):
                if key.data == "control" and not self._handle_request(output):
                    return
                if key.data == "output" and not self._hear(output):
                    self._selector.unregister(output)
                if key.data == "awake":
                    with suppress(BlockingIOError):
                        os.read(awake, 4096)
                    self._collect()
            if self._memory is not None and time.monotonic() >= look:
                self._weigh(self._memory)
                look = time.monotonic() + _LOOK

    def _handle_request(self, output: int) -> bool:
        """Answer a request; tell whether there are more to come."""
        try:
            word = self._requests.readline().split()
        except OSError:  # the grader is gone, and left something unread
            return False
        if word and word[0] == b"signal":
            with suppress(ProcessLookupError):
                if self._pid:
                    os.kill(self._pid, int(word[1]))
            return True
        if word == [b"output"]:
            while selectable(output) and self._hear(output):
                pass
            self._tell(output=self._said.decode(errors="replace"))
            return True
        return False

    def _hear(self, output: int) -> bool:
        """Read what is printed, keep the last of it; tell whether there may be more."""
        piece = os.read(output, 1 << 20)
        self._said += piece[-_KEPT:]
        del self._said[:-_KEPT]
        return bool(piece)

    def _collect(self) -> None:
        """Reap the processes that ended, ours and those that it left behind."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self._pid:
                    self._pid = 0
                    self._tell(exited=os.waitstatus_to_exitcode(status))

    def _weigh(self, most: int) -> None:
        members = descendants()
        if resident(members) > most and (used := proportional(members)) > most:
            self._memory = None
            self._tell(heavy=used)
            end_all()

    def _tell(self, **what: Any) -> None:
        with suppress(OSError):
            self._control.sendall(json.dumps(what).encode() + b"\n")


def become_subreaper() -> Any:
    """Become the parent of all orphans below this process; return the C library."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return libc


def selectable(fd: int) -> bool:
    """Tell whether there is something to read at once."""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(0))


def descendants() -> list[int]:
    """Return whatever lives below this process, however far, and zombies."""
    below: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                stat = Path(entry.path, "stat").read_text(encoding="ascii", errors="replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                below.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def end_all() -> None:
    """Kill everything below this process, and return when it is gone.

    First by process groups, which is one step for the kernel: what forks without end cannot escape
    it. Then all that were found, again and again until there are none.
    """
    deadline = time.monotonic() + _GIVE_UP
    while (members := descendants()) and time.monotonic() < deadline:
        groups = set()
        for pid in members:
            with suppress(OSError):
                groups.add(os.getpgid(pid))
        for group in groups - {os.getpgrp()}:
            with suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        for pid in members:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.002)


def resident(pids: list[int]) -> int:
    """Return the resident memory of processes, in bytes; what they share counts for each."""
    pages = 0
    for pid in pids:
        with suppress(OSError, IndexError, ValueError):
            pages += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def proportional(pids: list[int]) -> int:
    """Return the same with what they share counted once, as far as it can be told."""
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError, ValueError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total or resident(pids)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        Subreaper(control).run()
