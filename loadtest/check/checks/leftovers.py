"""Connection, afterwards: what the server keeps of clients that have left."""

import time
from contextlib import suppress
from dataclasses import astuple
from itertools import pairwise

import psutil

from loadtest.check.checks.common import await_end
from loadtest.check.client.connection import ClientConnection
from loadtest.check.model import check
from loadtest.check.submission.observed import HOLDING_NAMES, Holdings, busy_share, holdings
from loadtest.check.trial import CheckContext

_WARM_UP = 20  # clients

_DISCONNECTS = 20

_WATCH_SECONDS = 1.0  # seconds

_BUSY = 0.5  # of a CPU

_CYCLES = 200

_FEW_CYCLES = 80

_GROWTH = 10  # in each half of the cycles

_SETTLE = 1.0  # seconds of quiet

_GRACE = 3.0

_TOGETHER = 20  # clients that leave in the same instant

_TOGETHER_LINE = b"together\n"

_ANSWERED = 0.5  # seconds in which a client that is served has its answer

_END = 0.5  # seconds in which their processes end

_POLL_INTERVAL = 0.02  # seconds


@check(
    "C6",
    "uses no CPU once its clients have left",
    purpose="The classic mistake: recv returns nothing because the client is gone, and the loop "
    "goes round and round. It shows in no test of answers, and takes a CPU for each client that "
    "left.",
    wire="The server is restarted; 20 clients come and leave: answered and closed by FIN, "
    "half-close or reset, or without a word.",
    passes="In one of the three seconds after that, its processes together want less than half a "
    "CPU more than before. Time spent waiting for a CPU counts, so it holds on a busy machine, "
    "too.",
    hint="What does recv return at the end of the stream, and what does the loop do then?",
    weight=5,
    needs=("L2",),
    process=True,
    starts=True,
    consults=("C2", "C3"),
)
def idle_after(trial: CheckContext) -> None:
    """C6."""
    trial.session.start()  # no client has left this one yet
    before = _least_busy(trial)
    with trial.timeline.summarize(f"{_DISCONNECTS} clients", "come and leave, in four ways"):
        for number in range(_DISCONNECTS):
            _visit(trial, number)
    after = _least_busy(trial)
    trial.timeline.add("server", f"wants {after:.1f} CPUs; before the clients came, {before:.1f}")
    if after > before + _BUSY:
        trial.fail(
            f"after {_DISCONNECTS} clients have left, and with nobody connected, it keeps "
            f"{after:.1f} CPUs busy (before: {before:.1f})"
        )


def _least_busy(trial: CheckContext) -> float:
    """Return the least CPU share of up to three seconds: clearing up may take a moment."""
    shares = []
    for _ in range(int(_GRACE / _WATCH_SECONDS)):
        shares.append(busy_share(trial.server.tree(), _WATCH_SECONDS))
        if shares[-1] < _BUSY / 2:
            break
    return min(shares)


@check(
    "C7",
    "leaves nothing behind: descriptors, threads, processes, zombies, memory",
    purpose="What is left of each connection adds up until there is no more to be had, in days.",
    wire="After 20 clients to warm up, 200 come and go, one after the other, in two halves: "
    "answered and closed by FIN, half-close or reset, or without a word. (80, where C6 failed.) At "
    "the end of each half, 20 leave in the same instant: processes with children are stopped "
    "meanwhile (SIGSTOP), so that several children end at once. Then a second's quiet.",
    passes="No count grows by ten or more in both halves, nor the memory by 10 MiB (what is made "
    "once and kept, as the threads of a pool, grows in the first half only).",
    hint="Who closes the socket on every way out of the conversation? Who waits for a child that "
    "has ended (wait(2)), or joins a thread?",
    weight=5,
    needs=("L2",),
    process=True,
    consults=("C2", "C3", "C6"),
)
def leaves_nothing(trial: CheckContext) -> None:
    """C7."""
    server = trial.server
    with trial.timeline.summarize(f"{_WARM_UP} clients", "come and leave, in four ways"):
        for number in range(_WARM_UP):
            _visit(trial, number)
    counts = [_stable_holdings(trial)]
    cycles = (
        _FEW_CYCLES if trial.known_to_break("C6") else _CYCLES
    )  # with C6 failed, each takes longer than the last
    for _ in range(2):
        with trial.timeline.summarize(f"{cycles // 2} clients", "come and leave"):
            for number in range(cycles // 2):
                _visit(trial, number)
        _leave_together(trial)
        counts.append(_stable_holdings(trial, counts[-1]))
        trial.timeline.add("server", f"holds {counts[-1]}")
    growing_names = [_growing_counts(before, after) for before, after in pairwise(counts)]
    growth = [
        f"{name}: {', then '.join(map(str, values))}"
        for name, *values in zip(HOLDING_NAMES, *map(astuple, counts), strict=True)
        if all(name in half for half in growing_names)
    ]
    if growth:
        trial.fail(
            f"after each {cycles // 2} clients that came and left, it holds more than before: "
            + "; ".join(growth)
        )
    if server.status is not None:
        trial.fail(f"while clients came and went, the process {server.death}")


def _leave_together(trial: CheckContext) -> None:
    """Have clients leave in one instant, in which the parents of processes cannot react.

    Signals of one kind do not queue (signal(7)): a parent that waits for one child for each SIGCHLD
    leaves the others behind.
    """
    with trial.timeline.summarize(f"{_TOGETHER} clients", "come, and leave in the same instant"):
        lines = _served_at_once(trial)
        parents = [one for one in trial.server.tree() if _has_children(one)]
        for parent in parents:
            with suppress(psutil.Error):
                parent.suspend()
        try:
            for line in lines:
                line.close()
            if parents:
                _await_zombies(trial, len(lines))
        finally:
            for parent in parents:
                with suppress(psutil.Error):
                    parent.resume()


def _served_at_once(trial: CheckContext) -> list[ClientConnection]:
    """Return clients that are served at the same time: as many as the server serves, up to 20."""
    lines: list[ClientConnection] = []
    for number in range(_TOGETHER):
        line = trial.connect(f"B{number + 1}")
        line.send(_TOGETHER_LINE)
        owed = trial.answer(_TOGETHER_LINE)
        if line.read_within(_ANSWERED, len(owed)) != owed:  # it waits for its turn: not here
            line.close()
            break
        lines.append(line)
    return lines


def _has_children(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.children())
    return False


def _await_zombies(trial: CheckContext, most: int) -> None:
    """Wait until as many children have ended as there were clients, or for a moment."""
    deadline = time.monotonic() + _END
    while holdings(trial.server.tree()).zombies < most and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)


def _stable_holdings(trial: CheckContext, before: Holdings | None = None) -> Holdings:
    """Return what the server holds after a second's quiet, or three if it is still clearing up."""
    deadline = time.monotonic() + _GRACE
    time.sleep(_SETTLE / 2 if before is None else _SETTLE)
    current = holdings(trial.server.tree())
    while before is not None and _growing_counts(before, current) and time.monotonic() < deadline:
        time.sleep(0.05)
        current = holdings(trial.server.tree())
    return current


def _growing_counts(before: Holdings, after: Holdings) -> list[str]:
    """Return the names of the counts that have clearly grown."""
    return [
        name
        for name, then, now in zip(HOLDING_NAMES, astuple(before), astuple(after), strict=True)
        if now is not None and then is not None and now - then >= _GROWTH
    ]


def _visit(trial: CheckContext, number: int) -> None:
    """Come and go as client `number`, in each way in turn, except for ways known to do harm."""
    ways = [_leave, _half_close]
    if not trial.known_to_break("C3"):
        ways.append(_break_off)
    if not trial.known_to_break("C2"):
        ways.append(_say_nothing)
    ways[number % len(ways)](trial, trial.connect(f"A{number + 1}"))


def _leave(trial: CheckContext, line: ClientConnection) -> None:
    line.ask(trial.text(30))
    line.close()


def _half_close(trial: CheckContext, line: ClientConnection) -> None:
    line.ask(trial.text(30))
    line.half_close()
    await_end(trial, line)
    line.close()


def _break_off(trial: CheckContext, line: ClientConnection) -> None:
    line.ask(trial.text(30))
    line.reset()


def _say_nothing(trial: CheckContext, line: ClientConnection) -> None:
    trial.timeline.add(line.name, "says nothing")
    line.close()
