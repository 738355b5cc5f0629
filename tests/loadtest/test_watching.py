"""Whose CPU and memory a run shows: of every process that serves, as they come and go."""

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import echoserver
from clients.address import format_address
from loadtest.machine import sockets
from loadtest.machine.sampler import Sampler
from tests.support import inspection, wire
from tests.support.launching import Child, await_listening, free_port, run

# What the servers below begin with: a process that burns CPU when it is told to, and says so.
COMMON = """
import os, signal, socket, sys, time

def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

def say(word):
    print(word, flush=True)

def told():
    return sys.stdin.readline().strip()
"""


class Script:
    """A program of processes, told line by line what to do next."""

    def __init__(self, text: str, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMON + text, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout

    def hear(self) -> str:
        """Return the next word that it says."""
        return self._output.readline().strip()

    def tell(self, word: str = "") -> str:
        """Tell it a word; return its answer."""
        self._input.write(word + "\n")
        self._input.flush()
        return self.hear()


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    started: list[Script] = []

    def start(text: str, *words: str) -> Script:
        started.append(Script(text, *words))
        return started[-1]

    yield start
    for one in started:
        for pid in inspection.session(one.process.pid):
            os.kill(pid, signal.SIGKILL)
        one.process.wait()
        one._input.close()
        one._output.close()


BURNT = 0.15  # seconds of CPU in each of the processes below
TICKS = 0.021  # what was waited for is told in ticks of 10 ms, user and system apart


GRANDCHILD = """if os.fork() == 0: burn(N); os._exit(0)
    os.wait(); burn(N); say('one'); told(); os._exit(0)"""


@pytest.mark.parametrize(
    ("body", "burnt"),
    [
        # A child that has burnt ends, and its parent waits for it.
        ("burn(N); say('one'); told(); os._exit(0)", 1),
        # A child of the child burns, too, and is waited for by it.
        (GRANDCHILD, 2),
    ],
    ids=["child", "grandchild"],
)
def test_cpu_of_a_child_that_was_waited_for_counts_once(
    body: str, burnt: int, script: Callable[..., Script]
) -> None:
    one = script(
        f"N = {BURNT}\nsay('up'); told()\nif os.fork() == 0:\n    {body}\n"
        "os.wait(); say('waited'); told(); say('end')"
    )
    assert one.hear() == "up"
    watch = Sampler(one.process.pid)
    before = watch.cpu_seconds()
    assert one.tell() == "one"
    living = watch.cpu_seconds() - before
    assert one.tell() == "waited"
    dead = watch.cpu_seconds() - before
    assert burnt * BURNT - TICKS <= living <= dead + TICKS
    assert dead < burnt * BURNT + 0.1


def test_cpu_of_a_child_that_nobody_waits_for_stays(script: Callable[..., Script]) -> None:
    """Nobody: the kernel reaps it (SIGCHLD is ignored), or the parent is gone before."""
    one = script(
        f"N = {BURNT}\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN); say('up'); told()\n"
        "if os.fork() == 0: burn(N); say('burnt'); told(); os._exit(0)\n"
        "while True:\n"
        "    try: os.wait()\n"
        "    except ChildProcessError: break\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0: burn(N); say('orphan'); told(); burn(N); say('again'); told()\n"
        "    else: time.sleep(60)\n"
        "    os._exit(0)\n"
        "time.sleep(60)\n"
    )
    assert one.hear() == "up"
    watch = Sampler(one.process.pid)
    before = watch.cpu_seconds()
    assert one.tell() == "burnt"
    assert watch.cpu_seconds() - before >= BURNT
    assert one.tell() == "orphan"
    seen = watch.cpu_seconds()
    assert seen - before >= 2 * BURNT
    (middle,) = [child.pid for child in inspection.tree(one.process.pid)[0].children()]
    os.kill(middle, signal.SIGKILL)
    assert wire.eventually(lambda: not Path(f"/proc/{middle}").exists())
    assert watch.cpu_seconds() >= seen
    assert one.tell() == "again", "it lives on, and belongs to the server all the same"
    assert watch.cpu_seconds() - before >= 3 * BURNT
    one.process.kill()
    one.process.wait()
    assert watch.cpu_seconds() - before >= 3 * BURNT
    assert watch.peaks.processes == 3
    assert not watch.has_ended(), "its orphan lives"


def test_cpu_never_goes_back_while_children_come_and_go(script: Callable[..., Script]) -> None:
    """Looked at again and again, while dozens end: nothing is counted twice or forgotten."""
    one = script(
        "say('up'); told()\n"
        "for _ in range(60):\n"
        "    if os.fork() == 0: burn(0.004); os._exit(0)\n"
        "    if _ % 3 == 0: os.wait()\n"
        "try:\n"
        "    while True: os.wait()\n"
        "except ChildProcessError: pass\n"
        "import resource\n"
        "ours, theirs = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
        "say(str(sum(one.ru_utime + one.ru_stime for one in (ours, theirs)))); told()\n"
    )
    assert one.hear() == "up"
    watch = Sampler(one.process.pid)
    seen = [watch.cpu_seconds()]
    one._input.write("\n")
    one._input.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(one._output, selectors.EVENT_READ)
        while not selector.select(0):
            seen.append(watch.cpu_seconds())
    by_hand = float(one.hear())
    seen.append(watch.cpu_seconds())
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(by_hand, abs=TICKS + 0.01)


# -- who listens ---------------------------------------------------------------------------------


def holders(port: int) -> set[int]:
    watch = Sampler(None, ("127.0.0.1", port))
    return {key.pid for key in watch.holders}


def programs(watch: Sampler) -> dict[str, int]:
    return dict(watch.server_processes.programs) if watch.server_processes else {}


LISTENS = """
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind(("127.0.0.1", int(sys.argv[1])))
sock.listen()
say("up")
while True: sock.accept()[0].close()
"""


def test_processes_with_a_socket_each_are_all_watched(script: Callable[..., Script]) -> None:
    """SO_REUSEPORT: several sockets on one port, and no process above them all."""
    port = free_port()
    pair = [script(LISTENS, str(port)) for _ in range(2)]
    assert [one.hear() for one in pair] == ["up", "up"]
    assert holders(port) == {one.process.pid for one in pair}
    watch = Sampler(None, ("127.0.0.1", port))
    late = script(LISTENS, str(port))
    assert late.hear() == "up"
    assert watch.peaks.processes == 2
    watch.look()
    assert watch.peaks.processes == 3, "one that comes later, too"
    for one in (*pair, late):
        assert not watch.has_ended()
        one.process.kill()
        one.process.wait()
    assert watch.has_ended()


def test_a_service_manager_is_not_the_server(script: Callable[..., Script]) -> None:
    """It holds the socket that it hands over; below it runs everything."""
    port = free_port()
    manager = script(
        "open('/proc/self/comm', 'w').write('systemd')\n"
        "sock = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "say('up'); told()\n"
        "if os.fork() == 0:\n"
        "    open('/proc/self/comm', 'w').write('service'); say('served'); time.sleep(60)\n"
        "if os.fork() == 0: sock.close(); time.sleep(60)\n"  # another service
        "time.sleep(60)\n",
        str(port),
    )
    assert manager.hear() == "up"
    watch = Sampler(None, ("127.0.0.1", port))
    assert programs(watch) == {}
    assert manager.tell() == "served"
    watch.usage()
    assert programs(watch) == {"service": 1}


def test_what_we_run_below_is_not_the_server(tmp_path: Path) -> None:
    """The test's own process serves, and runs the load client: its CPU is not the server's."""
    asks = "import sys; from loadtest.machine.sampler import Sampler\n"
    asks += "print(Sampler(None, ('127.0.0.1', int(sys.argv[1]))).server_processes)"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        asked = subprocess.run(
            [sys.executable, "-c", asks, str(port)],
            capture_output=True,
            text=True,
            check=True,
        )
    assert asked.stdout.strip() == "None"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "127.0.0.2"])
def test_a_listener_is_found_by_each_of_its_addresses(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        inode = os.fstat(listener.fileno()).st_ino
        asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        here = sockets.addresses_here(asked, port)
        assert sockets.listening_inodes(here, port) == {inode}
        assert sockets.listening_inodes(here, 1) == frozenset()
        if host in {"::1", "127.0.0.2"}:
            elsewhere = sockets.addresses_here("127.0.0.1", port)
            assert sockets.listening_inodes(elsewhere, port) == frozenset()
    assert sockets.addresses_here("192.0.2.1", port) == frozenset(), "another machine's"


# -- at the prompt -------------------------------------------------------------------------------


def loaded(
    server: echoserver.SpawnedServer, file: Path, *words: str, meanwhile: Callable[[], Any]
) -> tuple[dict[str, Any], str, float]:
    """Put a server under load; return its row, what was shown, and its CPU seconds by hand."""
    before = inspection.cpu_seconds(server.pid)
    with _echoload(server, file, *words) as process:
        meanwhile()
        shown, _ = process.communicate(timeout=50)
    (found,) = json.loads(file.read_text())["results"]
    return found, shown, inspection.cpu_seconds(server.pid) - before


def seconds_shown(found: dict[str, Any]) -> float:
    messages = int(found["verified"] + found["drained"])
    return float(found["server"]["cpu_us_per_message"]) * messages / 1e6


@contextmanager
def _echoload(
    server: echoserver.SpawnedServer, file: Path, *words: str
) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "echoload"), "run"),
            *(format_address(*server.address), "-q", "--engine", "epoll", "--json", str(file)),
            *words,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_server_of_several_processes_is_measured_whole(tmp_path: Path) -> None:
    with echoserver.spawn(backend="selector", workers=2) as server:
        found, shown, hand = loaded(
            server, tmp_path / "out.json", "-c", "8", "-d", "700ms", meanwhile=lambda: None
        )
        resident = inspection.rss_bytes(server.pid)
    # By hand, there is what it took to make and to end the connections, besides.
    assert 0.7 * hand < seconds_shown(found) < 1.01 * hand
    assert found["server"]["processes"] == 3
    assert found["server"]["peak_rss_bytes"] == pytest.approx(resident, rel=0.1)
    assert found["server"]["watched"]["by_socket"]
    assert re.search(r"watched: 3 processes of .*, by the listening socket", shown)


@pytest.mark.ci
@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGKILL], ids=["all", "one"])
def test_workers_that_are_replaced_in_the_run_lose_no_cpu(how: int, tmp_path: Path) -> None:
    """All of them, which ends every connection, or the one that has fewer."""
    with echoserver.spawn(backend="selector", workers=2) as server:
        first = inspection.servers(server.pid)

        def replace() -> None:
            assert wire.eventually(lambda: len(inspection.peers_of(server.pid)) == 8, 20)
            time.sleep(0.2)  # so that they have used something: nothing depends on how much
            one = min(first, key=lambda pid: len(inspection.peers_of(pid)))
            gone = {one} if how == signal.SIGKILL else set(first)
            os.kill(one if how == signal.SIGKILL else server.pid, how)
            assert wire.eventually(lambda: not gone & set(inspection.servers(server.pid)), 20)

        words = ("-c", "8", "-d", "1500ms")
        found, _, hand = loaded(server, tmp_path / "out.json", *words, meanwhile=replace)
    # By hand, a worker that was replaced counts in ticks, and there is what came after the load.
    assert 0.5 * hand < seconds_shown(found) < 1.01 * hand + TICKS
    assert found["server"]["processes"] >= 3
    assert not any(early["server_gone"] for early in found["ended_early"])


@pytest.mark.ci
def test_a_balancers_figures_are_called_the_balancers(
    echo_server: echoserver.SpawnedServer, tmp_path: Path
) -> None:
    balancer = tmp_path / "balancer.py"
    balancer.write_text(
        "import asyncio, sys\n"
        "async def copy(reader, writer):\n"
        "    while data := await reader.read(65536):\n"
        "        writer.write(data)\n"
        "    writer.close()\n"
        "async def forward(reader, writer):\n"
        "    there, back = await asyncio.open_connection(sys.argv[2], int(sys.argv[3]))\n"
        "    await asyncio.gather(copy(reader, back), copy(there, writer))\n"
        "async def main():\n"
        "    server = await asyncio.start_server(forward, '127.0.0.1', int(sys.argv[1]))\n"
        "    await server.serve_forever()\n"
        "asyncio.run(main())\n"
    )
    port, (host, behind) = free_port(), echo_server.address
    with Child(
        [sys.executable, str(balancer), str(port), host, str(behind)], stderr=subprocess.DEVNULL
    ) as process:
        await_listening(port, process)
        result = run("echoload", "run", f"127.0.0.1:{port}", "-q", "-c", "2", "-n", "20")
        process.kill()
    assert result.returncode == 0, result.stderr
    assert re.search(r"watched: 1 process of \S+ balancer.py, by the listening", result.stdout)
    assert (
        "Of servers that it passes connections on to, the CPU and memory are not" in result.stdout
    )
