"""How what runs side by side shares the machine."""

import fcntl
from collections.abc import Iterator

import pytest

from tests.stress import report
from tests.stress.model import Cell


@pytest.fixture(autouse=True)
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A share of the machine, or all of it."""
    callspec = getattr(request.node, "callspec", None)
    cell: Cell | None = callspec.params.get("cell") if callspec else None
    full = report.asked_for(request.config)
    alone = full and cell is not None and cell.central and cell.backend in cell.fault.alone
    shared = tmp_path_factory.getbasetemp().parent  # by all that run side by side
    with (shared / "turnstile").open("w") as turnstile, (shared / "machine").open("w") as lock:
        # One at a time: who waits for all the others to leave is not overtaken by more of them.
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield
