"""Event loops with thousands of connections, and the timers of our own."""

from pathlib import Path

import pytest

import echoserver
from echoserver.drivers.callbacks import Timers
from loadtest.machine.descriptors import allow_descriptors
from tests.conftest import BUILTIN
from tests.support import wire

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("model", ["selector", "coroutine", "gevent", "asyncio"])
def test_the_drain_is_quick_for_thousands(model: str) -> None:
    """What the drain does for one must not grow with their number."""
    allow_descriptors(6000)
    with echoserver.spawn(backend=model) as server:
        socks = [wire.connect(server.address) for _ in range(6000)]
        assert wire.ask(socks[-1], b"X") == b"X"
        assert server.stop() == 0
        assert server.stopped is not None
        assert (server.stopped["cut"], server.stopped["connections"]) == (0, 6000)


def _nothing() -> None: ...


def test_timers() -> None:
    timers = Timers()
    made: list[str] = []
    assert timers.run_due() is None
    late = timers.call_later(60, lambda: made.append("late"))
    timers.call_later(0, lambda: made.append("first"))
    cancelled = timers.call_later(0, lambda: made.append("cancelled"))
    timers.call_later(0, lambda: made.append("second"))
    cancelled.cancel()
    cancelled.cancel()
    left = timers.run_due()
    assert made == ["first", "second"]
    assert left is not None
    assert 59 < left <= 60
    late.cancel()
    assert timers.run_due() is None
    assert timers.cancelled == 0


def test_cancelled_timers_are_not_kept() -> None:
    timers = Timers()
    kept = [timers.call_later(60, _nothing) for _ in range(100)]
    for _ in range(10_000):
        timers.call_later(60, _nothing).cancel()
    assert len(timers._heap) < 400
    for call in kept:
        call.cancel()
    assert timers.run_due() is None
    assert timers._heap == []


@pytest.mark.parametrize("model", [name for name in BUILTIN if name != "process"])
def test_connections_leave_no_cycles_behind(model: str, tmp_path: Path) -> None:
    """So the server may look for some rarely."""
    (tmp_path / "counting.py").write_text(
        "import gc, pathlib\n"
        "from echoserver.registry import load_backend\n"
        f"class Counting(load_backend({model!r})):\n"
        "    def serve(self, listener, service):\n"
        "        gc.collect()\n"
        "        gc.disable()\n"
        "        super().serve(listener, service)\n"
        f"        pathlib.Path({str(tmp_path / 'found')!r}).write_text(str(gc.collect()))\n"
    )
    with echoserver.spawn(backend=f"{tmp_path}/counting.py:Counting") as server:
        for _ in range(300):
            assert wire.served(server.address)
        assert server.stop() == 0
    assert int((tmp_path / "found").read_text()) < 100
