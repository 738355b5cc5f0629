"""One limit over several workers, whatever becomes of them."""

import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress

import pytest

import echoserver
from echoserver.service.slots import SharedSlots, SlotTable
from echoserver.system.shared_lock import SharedLock
from tests.support import wire
from tests.support.inspection import events
from tests.support.worker_processes import servers_of, worker_pids


def test_the_limit_counts_over_all_workers() -> None:
    with echoserver.spawn(workers=3, max_connections=2, overload="reject") as server:
        inside = [wire.connect(server.address) for _ in range(2)]
        assert all(wire.ask(sock, b"X") == b"X" for sock in inside)
        for _ in range(6):
            with wire.connect(server.address) as sock:
                assert wire.read_to_end(sock) == b""
        assert all(wire.ask(sock, b"X") == b"X" for sock in inside)
        assert wire.finish(inside[0]) == b""
        assert wire.eventually(lambda: wire.served(server.address))
    assert server.stopped is not None
    assert server.stopped["rejected"] >= 6


def test_as_many_as_are_allowed_are_never_turned_away() -> None:
    """A worker that only looks whether someone is there must not hold a slot meanwhile."""
    with echoserver.spawn(workers=4, max_connections=2, overload="reject") as server:
        for _ in range(150):
            socks = [wire.connect(server.address) for _ in range(2)]
            assert [wire.ask(sock, b"X") for sock in socks] == [b"X", b"X"]
            assert [wire.finish(sock) for sock in socks] == [b"", b""]
            for sock in socks:
                sock.close()
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["rejected"] == 0


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("thread", marks=pytest.mark.ci),
        "selector",
        pytest.param("process", marks=pytest.mark.ci),
    ],
)
def test_who_is_queued_is_not_lost_when_a_worker_stops(model: str) -> None:
    with echoserver.spawn(backend=model, workers=2, max_connections=2) as server:
        inside = [wire.connect(server.address) for _ in range(2)]
        assert all(wire.ask(sock, b"X") == b"X" for sock in inside)
        queued = wire.connect(server.address)
        queued.sendall(b"QUEUED")
        stopped = servers_of(inside, server)[inside[0]]
        os.kill(stopped, signal.SIGTERM)
        assert wire.read_exactly(queued, 6) == b"QUEUED"
        assert wire.read_to_end(inside[0]) == b""
        assert wire.eventually(lambda: events(server, "worker_died"))
        assert events(server, "worker_died")[0]["exit_code"] == 0
        assert wire.ask(queued, b"STILL HERE") == b"STILL HERE"
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["unserved"] == 0


def test_what_a_killed_process_held_is_free_again() -> None:
    """Wherever it was: whatever it had taken stands in its account, and nowhere else."""
    table = SlotTable(accounts=2, limit=3)
    mine = SharedSlots(10, table, account=0)
    assert mine.take()

    def exhausted() -> bool:
        return mine.exhausted

    ready, tell = os.pipe()
    if (pid := os.fork()) == 0:
        theirs = SharedSlots(10, table, account=1)
        table._lock.__enter__()  # killed while it looks
        os.write(tell, bytes([theirs.take(), theirs.take(), theirs.take()]))
        table._lock.__enter__()
        signal.pause()
    try:
        assert os.read(ready, 3) == bytes([True, True, False])
        assert exhausted()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not mine.take(), "until someone has noticed"
    table.wipe(1)
    assert not exhausted()
    assert [mine.take() for _ in range(3)] == [True, True, False]
    table.set_limit(2)
    mine.give()
    assert not mine.take(), "three of two are too many"
    mine.give()
    assert mine.take()
    for fd in (ready, tell):
        os.close(fd)
    table.close()


@pytest.mark.slow
def test_the_limit_holds_although_workers_are_killed_under_load() -> None:
    with echoserver.spawn(workers=2, max_connections=3) as server:
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                with suppress(OSError), socket.create_connection(server.address, 1) as sock:
                    sock.settimeout(1)
                    sock.sendall(b"X")
                    sock.recv(1)

        clients = [threading.Thread(target=come_and_go, daemon=True) for _ in range(6)]
        for client in clients:
            client.start()
        for number in range(12):
            with suppress(ProcessLookupError, IndexError):
                os.kill(worker_pids(server)[number % 2], signal.SIGKILL)
            assert wire.eventually(
                lambda: len(worker_pids(server)) == 2 and wire.served(server.address), 20
            )
        stop.set()
        for client in clients:
            client.join()
        assert wire.eventually(lambda: wire.served(server.address))
        socks = [wire.connect(server.address) for _ in range(6)]
        for sock in socks:
            sock.sendall(b"X")
        served = select.select(socks, [], [], 1)[0]
        assert wire.eventually(lambda: len(select.select(socks, [], [], 0)[0]) == 3), len(served)
        time.sleep(0.3)  # the test is that nobody else is served
        assert len(select.select(socks, [], [], 0)[0]) == 3


def test_two_locks_of_two_threads_are_no_deadlock() -> None:
    """What the kernel, which knows processes only, takes for one."""
    locks = SharedLock("one"), SharedLock("other")
    until = time.monotonic() + 1.0

    def contend() -> list[BaseException]:
        failed: list[BaseException] = []

        def take(lock: SharedLock) -> None:
            try:
                while time.monotonic() < until:
                    with lock:
                        pass
            except OSError as error:
                failed.append(error)

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failed

    if (pid := os.fork()) == 0:
        os._exit(len(contend()))
    assert contend() == []
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for lock in locks:
        lock.close()
