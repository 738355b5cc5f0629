"""Connection: clients half-close, vanish, and break off; the server loses nothing by it."""

import socket
import time
from contextlib import suppress
from dataclasses import astuple
from itertools import pairwise

from loadtest.check.client.connection import SMALL_BUFFER, ClientConnection, reset
from loadtest.check.failure import Failure, failure_context
from loadtest.check.model import check
from loadtest.check.submission.observed import HELD, Holdings, busy_share, holdings
from loadtest.check.trial import CheckContext

_HALF_CLOSED = 60_000  # bytes: they fit into the kernel's buffers, so nobody has to read meanwhile
_MOMENT = 1.0  # seconds
_EMPTY = 20  # connections
_UNREAD = 10
_EARLY = 100
_WARM_UP = 20  # clients
_WAVE = 20  # connections that are reset together
_MID_WRITE = 3
_FLOOD = 16 << 20  # bytes
_BLOCKED = 0.2  # seconds
_DISCONNECTS = 20
_WATCHED = 1.0  # seconds
_BUSY = 0.5  # of a CPU
_CYCLES = 200
_FEW_CYCLES = 80
_GROWTH = 10  # in each half of the cycles
_SETTLE = 1.0  # seconds of quiet
_GRACE = 3.0


@check(
    "C1",
    "answers a half-close in full, then ends the stream",
    purpose="A client that has sent everything says so with a half-close (nc does), and reads "
    "until the end. It must get all it is owed, and must not wait for ever.",
    wire="A client sends 60,000 bytes, half-closes (SHUT_WR), and only then reads. No other "
    "client connects meanwhile. Another one sends until the server takes no more, half-closes, "
    "and reads.",
    passes="All bytes come back, then the end of the stream (FIN), not a reset.",
    hint="When recv returns nothing, is all that is owed sent, and then the socket closed? By "
    "every process that has a copy of it? After a reset: was something left unread, or SO_LINGER "
    "set?",
    weight=5,
    needs=("L2",),
)
def half_close(trial: CheckContext) -> None:
    """C1."""
    line = trial.connect()
    question = trial.text(_HALF_CLOSED)
    with line.corked():  # the last bytes and the end arrive together, however busy this machine is
        line.send(question)
        line.half_close()
    line.expect(trial.answer(question), "reply after the half-close")
    if line.ends(trial.patience):
        line.close()
        if not (trial.by_line or trial.known_to_break("S3") or trial.known_to_break("S6")):
            _half_close_when_full(trial)
        return
    other = trial.connect("B")
    kept = line.ends(_MOMENT)
    other.close()
    found = f"client A got everything back, but no end of the stream, in {trial.patience:.0f} s"
    if kept:
        found += (
            "; it came when another client connected: until then somebody in the server kept the "
            "first one's socket open"
        )
    trial.fail(found)


def _half_close_when_full(trial: CheckContext) -> None:
    """Half-close while the server has output waiting that its socket does not take."""
    line = trial.connect("B", buffer=SMALL_BUFFER)
    flood = trial.text(_FLOOD)
    sent = line.send_what_is_taken(flood, _BLOCKED)
    line.half_close()
    line.expect(trial.answer(flood[:sent]), "reply after a half-close with all buffers full")
    if not line.ends(trial.patience):
        trial.fail(f"client B got everything back, but no end, in {trial.patience:.0f} s")


@check(
    "C2",
    "survives connections without a byte",
    purpose="Port scanners, health checks and impatient people connect and leave.",
    wire="20 times: one client connects and closes; another one connects, half-closes, waits a "
    "moment for the end, and closes.",
    passes="The next client is served.",
    hint="What does the code do with the empty result of the very first recv?",
    weight=3,
    needs=("L2",),
)
def empty(trial: CheckContext) -> None:
    """C2."""
    for _ in range(_EMPTY):
        trial.connect("A").close()
        line = trial.connect("B")
        line.half_close()
        _await_end(trial, line)
        line.close()
    _next_is_served(trial, f"after {_EMPTY} clients had left without a byte")


@check(
    "C3",
    "survives a reset with unread replies",
    purpose="A browser tab is closed, a program killed: the connection ends with a reset. That is "
    "this client's end, and nobody else's.",
    wire="10 clients send 4,000 bytes, wait until a reply is there, and reset without reading it.",
    passes="The next client is served.",
    hint="recv and send can fail (ECONNRESET, EPIPE; in C, there is SIGPIPE). Who handles that?",
    weight=4,
    needs=("L2",),
)
def reset_unread(trial: CheckContext) -> None:
    """C3."""
    for number in range(_UNREAD):
        line = trial.connect(f"A{number + 1}")
        line.send(trial.text(4000))
        line.await_readable()
        line.reset()
    _next_is_served(trial, f"after {_UNREAD} clients had reset")


@check(
    "C4",
    "survives 100 resets before it accepts",
    purpose="A connection can be over before the server gets to accept it.",
    wire="100 clients connect and reset at once, 20 in each burst.",
    passes="After each burst, another client is served.",
    hint="After accept, each call on the new socket can fail: getpeername, setsockopt, recv.",
    weight=4,
    needs=("L2",),
)
def reset_early(trial: CheckContext) -> None:
    """C4."""
    trial.timeline.add(f"{_EARLY} clients", f"connect, and reset, {_WAVE} at a time")
    for _ in range(_EARLY // _WAVE):
        wave = []
        for _ in range(_WAVE):
            sock = socket.socket(trial.family, socket.SOCK_STREAM)
            trial.opened.append(sock)
            sock.setblocking(False)
            sock.connect_ex(trial.address)
            wave.append(sock)
        for sock in wave:
            reset(sock)
        _next_is_served(trial, f"after {_WAVE} clients had reset at once")


@check(
    "C5",
    "survives a peer that vanishes in the middle of a reply",
    purpose="A download is broken off. The server is blocked in send, or has output waiting.",
    wire="A client sends without reading until the server takes no more (or 16 MiB), and closes. "
    "Three times.",
    passes="The next client is served.",
    hint="send can fail in the middle of a reply; what is done then with what is left of it?",
    weight=4,
    needs=("L2",),
)
def gone_mid_write(trial: CheckContext) -> None:
    """C5."""
    flood = trial.text(_FLOOD)
    for number in range(_MID_WRITE):
        line = trial.connect(f"A{number + 1}", buffer=SMALL_BUFFER)
        line.send_what_is_taken(flood, _BLOCKED)
        line.close()
    _next_is_served(trial, f"after {_MID_WRITE} clients had vanished")


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
)
def idle_after(trial: CheckContext) -> None:
    """C6."""
    trial.session.start()  # nobody has left this one yet
    before = _least_busy(trial)
    with trial.timeline.summed_up(f"{_DISCONNECTS} clients", "come and leave, in four ways"):
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
    """Watch for a second, or three: clearing up after clients may take a moment."""
    shares = []
    for _ in range(int(_GRACE / _WATCHED)):
        shares.append(busy_share(trial.server.tree(), _WATCHED))
        if shares[-1] < _BUSY / 2:
            break
    return min(shares)


@check(
    "C7",
    "leaves nothing behind: descriptors, threads, processes, zombies, memory",
    purpose="What is left of each connection adds up until there is no more to be had, in days.",
    wire="After 20 clients to warm up, 200 come and go, one after the other, in two halves: "
    "answered and closed by FIN, half-close or reset, or without a word. A second's quiet after "
    "each half. (80, where C6 failed.)",
    passes="No count grows by ten or more in both halves, nor the memory by 10 MiB (what is made "
    "once and kept, as the threads of a pool, grows in the first half only).",
    hint="Who closes the socket on every way out of the conversation? Who waits for a child that "
    "has ended (wait(2)), or joins a thread?",
    weight=5,
    needs=("L2",),
    process=True,
)
def leaves_nothing(trial: CheckContext) -> None:
    """C7."""
    server = trial.server
    with trial.timeline.summed_up(f"{_WARM_UP} clients", "come and leave, in four ways"):
        for number in range(_WARM_UP):
            _visit(trial, number)
    counts = [_settled(trial)]
    cycles = (
        _FEW_CYCLES if trial.known_to_break("C6") else _CYCLES
    )  # each takes longer than the last then
    for _ in range(2):
        with trial.timeline.summed_up(f"{cycles // 2} clients", "come and leave"):
            for number in range(cycles // 2):
                _visit(trial, number)
        counts.append(_settled(trial, counts[-1]))
        trial.timeline.add("server", f"holds {counts[-1]}")
    both = [_grown(before, after) for before, after in pairwise(counts)]
    grown = [
        f"{name}: {', then '.join(map(str, held))}"
        for name, *held in zip(HELD, *map(astuple, counts), strict=True)
        if all(name in half for half in both)
    ]
    if grown:
        trial.fail(
            f"after each {cycles // 2} clients that came and left, it holds more than before: "
            + "; ".join(grown)
        )
    if server.status is not None:
        trial.fail(f"while clients came and went, the process {server.death}")


def _settled(trial: CheckContext, before: Holdings | None = None) -> Holdings:
    """Return what the server holds after a second's quiet, or three if it still clears up."""
    deadline = time.monotonic() + _GRACE
    time.sleep(_SETTLE / 2 if before is None else _SETTLE)
    held = holdings(trial.server.tree())
    while before is not None and _grown(before, held) and time.monotonic() < deadline:
        time.sleep(0.05)
        held = holdings(trial.server.tree())
    return held


def _grown(before: Holdings, after: Holdings) -> list[str]:
    """Return what there is clearly more of."""
    return [
        name
        for name, then, now in zip(HELD, astuple(before), astuple(after), strict=True)
        if now is not None and then is not None and now - then >= _GROWTH
    ]


def _visit(trial: CheckContext, number: int) -> None:
    """Come and go as client `number`: each of the ways in turn, but for those known to harm."""
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
    _await_end(trial, line)
    line.close()


def _break_off(trial: CheckContext, line: ClientConnection) -> None:
    line.ask(trial.text(30))
    line.reset()


def _say_nothing(trial: CheckContext, line: ClientConnection) -> None:
    trial.timeline.add(line.name, "says nothing")
    line.close()


def _next_is_served(trial: CheckContext, what: str) -> None:
    """Let another client ask."""
    with failure_context(f"{what}, "):
        line = trial.connect("Z")
        line.ask(trial.text(20))
    line.close()


def _await_end(trial: CheckContext, line: ClientConnection) -> None:
    """Give the server a moment to end the stream; that it does is C1's business."""
    with suppress(Failure):
        if not trial.never_ends_stream:  # in vain once is enough
            trial.never_ends_stream = not line.ends(_MOMENT)
