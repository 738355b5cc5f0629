"""Runs one command that is not trusted, and ensures that none of its processes survives.

The keeper is a process between the grader and what it grades. All descendants of the command stay
descendants of the keeper, even those that detach themselves (prctl(2), PR_SET_CHILD_SUBREAPER). So
when the grader asks for it, or has ended for any reason, the keeper can find and kill all of them.
Besides, it reads what the command prints, so that a server that logs without end never waits for a
reader, and costs the grader nothing.

The grader holds the other end of a socket. Its first line is an `Order` as JSON, later ones are
requests; each line from the keeper is an event.
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
_MAX_OUTPUT = 64 << 10  # bytes of output
_LONGEST_FILE = 256 << 20  # bytes; a log written to a file must not fill the disk
_MEMORY_INTERVAL = 0.2  # seconds between two checks of the memory
_KILL_TIMEOUT = 20.0  # seconds of killing


@dataclass(frozen=True, slots=True)
class Order:
    """The command to run, and its limits; None: no limit of its own."""

    command: list[str]
    environment: dict[str, str]
    memory: int | None = None
    """Bytes of all its processes together; they are killed when they use more."""
    nofile: int | None = None
    """Descriptors of each process."""
    nproc: int | None = None
    """Processes and threads of its user, as setrlimit(2) counts them."""
    user: str | None = None

    def as_line(self) -> bytes:
        """Return the line that is sent to the keeper."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Subreaper:
    """Supervises the processes that one order started."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._requests = control.makefile("rb", buffering=0)
        self._output = bytearray()
        self._pid = 0
        self._memory: int | None = None

    def run(self) -> None:
        """Carry out the order, and requests, until the grader is gone or ends the conversation."""
        libc = become_subreaper()
        # These may be meant for the grader, and the keeper is needed until that has ended.
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
            # However the keeper ends, the command ends with it.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limits = {
                resource.RLIMIT_FSIZE: _LONGEST_FILE,
                resource.RLIMIT_NOFILE: order.nofile,
                resource.RLIMIT_NPROC: order.nproc,
            }
            for resource_, value in limits.items():
                if value is not None:
                    hard = resource.getrlimit(resource_)[1]
                    if hard != resource.RLIM_INFINITY:
                        value = min(value, hard)  # noqa: PLW2901 - never more than is allowed
                    resource.setrlimit(resource_, (value, value))

        output, writer = os.pipe()
        # Open and silent: at the end of its input, a server that waits for Enter would stop. The
        # other end stays open here, for as long as the server lives.
        standard_input, self._silence = os.pipe()
        identity: dict[str, Any] = {}
        entry = pwd.getpwnam(order.user) if order.user is not None else None
        if entry is not None and entry.pw_uid != os.geteuid():
            groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
            order.environment["HOME"] = entry.pw_dir
        try:
            process = subprocess.Popen(
                order.command,
                stdin=standard_input,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
                env=order.environment,
                preexec_fn=limit,  # noqa: PLW1509 - no thread runs here
                **identity,
            )
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            number = getattr(error, "errno", None)
            self._send_event(failed=f"cannot start {order.command[0]}: {reason}", errno=number)
            raise SystemExit(1) from None
        os.close(writer)
        os.close(standard_input)
        self._pid = process.pid
        process.returncode = 0  # `_collect` reaps it, with all the others
        self._send_event(started=self._pid)
        return output

    def _watch(self, output: int, awake: int) -> None:
        self._selector.register(self._control, selectors.EVENT_READ, "control")
        self._selector.register(output, selectors.EVENT_READ, "output")
        self._selector.register(awake, selectors.EVENT_READ, "awake")
        next_check = time.monotonic() + _MEMORY_INTERVAL
        while True:
            timeout = None if self._memory is None else max(0.0, next_check - time.monotonic())
            for key, _ in self._selector.select(timeout):
                if key.data == "control" and not self._handle_request(output):
                    return
                if key.data == "output" and not self._read_output(output):
                    self._selector.unregister(output)
                if key.data == "awake":
                    with suppress(BlockingIOError):
                        os.read(awake, 4096)
                    self._collect()
            if self._memory is not None and time.monotonic() >= next_check:
                self._check_memory(self._memory)
                next_check = time.monotonic() + _MEMORY_INTERVAL

    def _handle_request(self, output: int) -> bool:
        """Answer a request; tell whether there are more to come."""
        try:
            request = self._requests.readline().split()
        except OSError:  # the grader is gone, and left something unread
            return False
        if request and request[0] == b"signal":
            with suppress(ProcessLookupError):
                if self._pid:
                    os.kill(self._pid, int(request[1]))
            return True
        if request == [b"output"]:
            while selectable(output) and self._read_output(output):
                pass
            self._send_event(output=self._output.decode(errors="replace"))
            return True
        return False

    def _read_output(self, output: int) -> bool:
        """Read output of the command, and keep the last of it; tell whether there may be more."""
        piece = os.read(output, 1 << 20)
        self._output += piece[-_MAX_OUTPUT:]
        del self._output[:-_MAX_OUTPUT]
        return bool(piece)

    def _collect(self) -> None:
        """Reap the processes that have ended: the command, and its orphans."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self._pid:
                    self._pid = 0
                    self._send_event(exited=os.waitstatus_to_exitcode(status))

    def _check_memory(self, limit_bytes: int) -> None:
        members = descendants()
        if resident(members) > limit_bytes and (used_bytes := proportional(members)) > limit_bytes:
            self._memory = None
            self._send_event(heavy=used_bytes)
            end_all()

    def _send_event(self, **event: Any) -> None:
        with suppress(OSError):
            self._control.sendall(json.dumps(event).encode() + b"\n")


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
    """Return the numbers of all descendants of this process, including zombies."""
    children_by_parent: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                stat = Path(entry.path, "stat").read_text(encoding="ascii", errors="replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                children_by_parent.setdefault(parent, []).append(int(entry.name))
    pids: list[int] = []
    pending = [os.getpid()]
    while pending:
        children = children_by_parent.get(pending.pop(), [])
        pids += children
        pending += children
    return pids


def end_all() -> None:
    """Kill all descendants of this process, and return when they are gone.

    Process groups are killed first, in one step of the kernel, which a process that forks without
    end cannot escape. Then each descendant is killed, again and again until there are none.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT
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
    """Return the resident memory of processes, in bytes; shared pages count for each of them."""
    pages = 0
    for pid in pids:
        with suppress(OSError, IndexError, ValueError):
            pages += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def proportional(pids: list[int]) -> int:
    """Return the memory of processes, in bytes; shared pages count once, as far as known."""
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
