"""Every fault against every backend; see docs/reliability.md.

CI runs what is quick, in a small form (``-m "stress and ci"``), ``make stress`` all of it.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import echoserver
from tests.stress import report
from tests.stress.arena import Arena
from tests.stress.model import Cell, cells, every
from tests.stress.network import own_network

# What a check or a client finds, or the code that starts a server; not mistakes of ours.
_FOUND = (AssertionError, OSError, subprocess.TimeoutExpired, echoserver.BootError)
_FAST_BOUND = 5.0  # seconds within which the canary is served, where other tests run beside


def _marks(cell: Cell) -> list[Any]:
    # The function only: a case may have to wait for others.
    marks = [pytest.mark.stress, pytest.mark.timeout(cell.fault.timeout, func_only=True)]
    quick = cell.fault.fast and cell.central and cell.backend == _exemplar(cell)
    return [*marks, pytest.mark.ci if quick else pytest.mark.slow]


def _exemplar(cell: Cell) -> str:
    """Return the backend with which CI tries a fault: in turn, those it can hit."""
    possible = [one for one in ("process", "selector", "thread", "gevent") if cell.fault.only(one)]
    return possible[cell.fault.number % len(possible)]


@pytest.mark.parametrize(
    "cell", [pytest.param(one, id=one.id, marks=_marks(one)) for one in cells()]
)
def test_fault(cell: Cell, request: pytest.FixtureRequest) -> None:
    full = report.asked_for(request.config)
    begun = time.monotonic()

    def carry_out() -> str:
        with Arena(cell, full=full and cell.central, bound=1.0 if full else _FAST_BOUND) as arena:
            return cell.fault.run(arena)

    figure = in_its_place(cell, carry_out)
    report.note(request.config, cell, figure, time.monotonic() - begun)


def in_its_place(cell: Cell, carry_out: Callable[[], str]) -> str:
    """Carry a case out: in a network of its own, where it needs one."""
    for program in cell.fault.needs:
        if not shutil.which(program):
            pytest.skip(f"no {program}")
    if not cell.fault.namespace:
        return carry_out()
    outcome: list[str | BaseException] = []

    def run() -> None:
        try:
            own_network()
            outcome.append(carry_out())
        except BaseException as error:  # noqa: BLE001 - raised again below
            outcome.append(error)

    thread = threading.Thread(target=run)  # a network is a thread's, and of those it starts
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.timeout(200, func_only=True)
@pytest.mark.parametrize("one", every(), ids=lambda one: one.id)
def test_a_server_with_the_defect_fails(one: Any) -> None:
    """A case that nothing can fail proves nothing."""
    backend = "thread" if one.only("thread") else "process"
    cell = Cell(one, backend, 2 if one.workers else None, tls=False)
    failed: list[BaseException] = []

    def carry_out() -> str:
        try:
            with Arena(cell, full=False, override=dict(one.control)) as arena:
                one.run(arena)
        except _FOUND as error:
            failed.append(error)
        return ""

    in_its_place(cell, carry_out)
    assert failed, f"{one.title}: the defect was not found"
