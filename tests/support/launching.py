"""Servers started the hard way: with stderr broken, or with fewer rights."""

import json
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest

import echoserver
from loadtest.machine import ports
from tests.support import inspection, wire

BIN = Path(sys.executable).parent


class Child(subprocess.Popen[Any]):
    """A process that ends with its block: where that fails it is killed, or nobody would end it."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


def command(name: str) -> str:
    """Return the path of an installed command."""
    return str(BIN / name)


_reserved: list[socket.socket] = []


def free_port(*, low: bool = False) -> int:
    """Return a port that nothing listens on, and that no other test is given while this run lasts.

    Args:
        low: One that takes privileges.
    """
    for _ in range(100):
        port = random.randrange(300, 1000) if low else ports.free_port()
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0echoserver-test-port-{port}")  # abstract: it goes with this process
            with socket.create_server(("127.0.0.1", port)):
                pass
        except OSError:
            lock.close()
        else:
            _reserved.append(lock)
            return port
    raise AssertionError("no port is free")


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run an installed command to its end; the environment's ECHOSERVER_* stay out."""
    environment = {k: v for k, v in _PLAIN.items() if not k.startswith("ECHOSERVER_")}
    environment.update(options.pop("env", {}))
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run([command(words[0]), *words[1:]], env=environment, check=False, **options)


# What decides on colours comes from a test, and not from where tests run.
_COLOUR = {"NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"}
_PLAIN = {name: value for name, value in os.environ.items() if name not in _COLOUR}


class Terminal:
    """A person at a terminal, typing into a command."""

    def __init__(self, *words: str, env: Mapping[str, str] | None = None) -> None:
        self._leader, follower = os.openpty()
        self.process = subprocess.Popen(
            [command(words[0]), *words[1:]],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            # A test run in the background inherits SIGINT ignored; a person's shell does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={**_PLAIN, "TERM": "xterm", **(env or {})},
        )
        os.close(follower)
        self._shown = b""

    def type(self, text: str | bytes) -> None:
        os.write(self._leader, text.encode() if isinstance(text, str) else text)

    def read_until(self, text: str) -> str:
        """Return what is shown up to and including `text`."""
        deadline = time.monotonic() + wire.patience
        while (wanted := text.encode()) not in self._shown:
            assert time.monotonic() < deadline, self._shown
            if select.select([self._leader], [], [], 0.1)[0]:
                try:
                    self._shown += os.read(self._leader, 4096)
                except OSError:
                    raise AssertionError(f"{text!r} was not shown: {self._shown!r}") from None
        end = self._shown.index(wanted) + len(wanted)
        shown, self._shown = self._shown[:end], self._shown[end:]
        return shown.decode(errors="replace")

    def read_all(self) -> str:
        """Return what is shown until the command has ended."""
        deadline = time.monotonic() + wire.patience
        with suppress(OSError):  # EIO: nobody has the terminal open any longer
            while data := os.read(self._leader, 4096):
                self._shown += data
                assert time.monotonic() < deadline, self._shown
        shown, self._shown = self._shown, b""
        return shown.decode(errors="replace")

    def close(self) -> int:
        code = self.process.wait(10)
        os.close(self._leader)
        return code


@contextmanager
def serving(backend: str = "thread", **settings: Any) -> Iterator[echoserver.SpawnedServer]:
    """Spawn a server, which writes no traceback however it is treated."""
    with echoserver.spawn(backend=backend, **settings) as server:
        yield server
        assert "Traceback" not in server.stderr


def totals(server: echoserver.SpawnedServer) -> dict[str, Any]:
    """Stop a server, and return what it says of its life."""
    assert server.stop() == 0
    assert server.stopped is not None
    return server.stopped


@contextmanager
def shell(script: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a shell script whose ``"$@"`` is a command and its arguments; then end it."""
    words = [sys.executable, "-P", "-m", *arguments]
    process = subprocess.Popen(["sh", "-c", script, "sh", *words], **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def changed_server(
    change: str, *words: str
) -> Iterator[tuple[subprocess.Popen[str], wire.Address]]:
    """Run the command after a `change` to its modules, such as a shorter interval; then end it."""
    program = f"{change}; from echoserver.launch import echoserver; echoserver()"
    with Child(
        [sys.executable, "-c", program, "--port", "0", *words], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                event = json.loads(line)
                if event["event"] == "listening":
                    yield process, (event["host"], event["port"])
                    return
            raise AssertionError("the server ended before it served")
        finally:
            process.kill()


def await_listening(port: int, process: subprocess.Popen[bytes]) -> wire.Address:
    """Wait until something accepts on `port`."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with suppress(OSError), wire.connect(("127.0.0.1", port)):
            return ("127.0.0.1", port)
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


def terminate(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, and the exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(20)


@contextmanager
def task_limit(pids: Sequence[int], spare: int) -> Iterator[None]:
    """Let processes have `spare` tasks (threads and processes) more than they have now.

    By the pids controller of cgroup v1 or v2; where neither can be written, by RLIMIT_NPROC, which
    counts all tasks of a user, and which root is exempt from.
    """
    group = _make_group()
    if group is None:
        if os.geteuid() == 0:
            pytest.skip("root, and no pids controller that can be written")
        before = resource.prlimit(pids[0], resource.RLIMIT_NPROC)
        limit = _tasks_of_this_user() + spare
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_NPROC, (limit, before[1]))
        yield
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_NPROC, before)
        return
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        current = int((group / "pids.current").read_text())
        (group / "pids.max").write_text(str(current + spare))
        yield
    finally:
        (group / "pids.max").write_text("max")
        parent = group.parent / "cgroup.procs"
        for member in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                parent.write_text(member)
        wire.eventually(partial(_removed, group), 5)


@contextmanager
def few_tasks(limit: int) -> Iterator[list[str]]:
    """Return words that run what follows them with no more than `limit` threads and processes.

    By the pids controller of cgroup v1 or v2; skips where that cannot be written.
    """
    group = _make_group()
    if group is None:
        pytest.skip("no pids controller that can be written")
    try:
        (group / "pids.max").write_text(str(limit))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    finally:
        (group / "pids.max").write_text("max")
        assert wire.eventually(partial(_removed, group)), f"{group} is in use"


@contextmanager
def half_a_core(memory: int) -> Iterator[list[str]]:
    """Return words that run what follows them on half a core, with so much memory, in bytes.

    By the cpu and memory controllers of cgroup v1 or v2; skips where they cannot be written.
    """
    root, name = Path("/sys/fs/cgroup"), f"echoserver-test-half-{os.getpid()}"
    v2 = (root / "cgroup.controllers").exists()
    groups = [root / name] if v2 else [root / "cpu" / name, root / "memory" / name]
    try:
        if v2:
            (root / "cgroup.subtree_control").write_text("+cpu +memory")
        for group in groups:
            group.mkdir()
        if v2:
            (groups[0] / "cpu.max").write_text("50000 100000")
            (groups[0] / "memory.max").write_text(str(memory))
        else:
            (groups[0] / "cpu.cfs_period_us").write_text("100000")
            (groups[0] / "cpu.cfs_quota_us").write_text("50000")
            (groups[1] / "memory.limit_in_bytes").write_text(str(memory))
    except OSError:
        pytest.skip("no cpu and memory controllers that can be written")
    enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
    try:
        yield ["sh", "-c", f'{enter}exec "$@"', "sh"]
    finally:
        for group in groups:
            assert wire.eventually(partial(_removed, group)), f"{group} is in use"


def _removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def _tasks_of_this_user() -> int:
    count = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        if process.info["uids"] is not None and process.info["uids"].real == os.getuid():
            count += process.info["num_threads"] or 0
    return count


def _make_group() -> Path | None:
    name = f"echoserver-test-{os.getpid()}"
    root = Path("/sys/fs/cgroup")
    candidates: Sequence[Path] = [root / "pids" / name, root / name]
    for group in candidates:
        try:
            if group.parent == root:
                (root / "cgroup.subtree_control").write_text("+pids")
            group.mkdir(exist_ok=True)
        except OSError:
            continue
        if (group / "pids.max").exists():
            return group
    return None


def limit_descriptors(pid: int, spare: int = 0) -> None:
    """Let a process open `spare` descriptors more than it has open now; it takes root to undo."""
    inspection.settled(pid)  # a client may be answered before the server has let go of its socket
    used = inspection.descriptors(pid)
    free = [number for number in range(1000) if number not in used]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[spare], 20000))
