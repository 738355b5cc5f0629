"""The load client and the grader face servers that mean them no good, and come back."""

import json
import socket
import threading
import time
from collections.abc import Callable

import pytest

from clients.address import format_address
from tests.support import pace, wire
from tests.support.launching import run
from tests.support.misbehaving import accepting

_OVER = threading.Event()


def slow_drip(sock: socket.socket, _number: int) -> None:
    """A byte of the answer every half second."""
    while data := sock.recv(65536):
        for value in data:
            sock.sendall(bytes([value]))
            if _OVER.wait(0.5):
                return


def endless(sock: socket.socket, _number: int) -> None:
    """Whatever is asked, more than anybody wants."""
    sock.recv(65536)
    while not _OVER.is_set():
        sock.sendall(bytes(65536))


def instant_reset(sock: socket.socket, _number: int) -> None:
    """Nobody is welcome."""
    wire.reset(sock)


def never(sock: socket.socket, _number: int) -> None:
    """It takes all, and says nothing."""
    while sock.recv(65536):
        pass


HOSTILE = pytest.mark.parametrize("converse", [slow_drip, endless, instant_reset, never])
Converse = Callable[[socket.socket, int], None]


@pytest.mark.ci
@pytest.mark.stress
@pytest.mark.timeout(60, func_only=True)
@HOSTILE
@pytest.mark.parametrize("engine", ["threads", "epoll"])
def test_the_load_client_comes_back(converse: Converse, engine: str) -> None:
    _OVER.clear()
    begun = time.monotonic()
    with accepting(converse) as address:
        result = run(
            *("echoload", "run", format_address(*address), "--engine", engine, "-c", "5"),
            *("-d", "1s", "--timeout", "2s", "--warmup", "0s"),
        )
        _OVER.set()
    assert result.returncode == 4, result.stdout + result.stderr  # nothing verified
    assert "Traceback" not in result.stderr
    assert pace.within(time.monotonic() - begun, 30)


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.timeout(200, func_only=True)
@HOSTILE
def test_the_grader_comes_back(converse: Converse) -> None:
    _OVER.clear()
    begun = time.monotonic()
    with accepting(converse) as address:
        where = format_address(*address)
        result = run(
            *(
                "echoload",
                "check",
                where,
                "--timeout",
                "3s",
                "--total-timeout",
                "45s",
                "--format",
                "json",
            ),
            timeout=150,
        )
        _OVER.set()
    assert result.returncode == 1, result.stdout + result.stderr
    verdict = json.loads(result.stdout)
    assert any(one["status"] == "failed" and one["message"] for one in verdict["checks"])
    assert pace.within(time.monotonic() - begun, 150)
    assert "Traceback" not in result.stderr
