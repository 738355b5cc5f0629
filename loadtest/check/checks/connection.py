"""Connection: clients half-close, vanish, and break off; the server loses nothing by it."""

import time
from contextlib import suppress

from loadtest.check.checks.common import MOMENT, await_end
from loadtest.check.client.circumstances import new_socket
from loadtest.check.client.connection import SMALL_BUFFER, ClientConnection, reset
from loadtest.check.failure import Failure, failure_context, raise_own_limit
from loadtest.check.model import check
from loadtest.check.trial import CheckContext
from loadtest.machine.sockets import largest_buffer

_HALF_CLOSED = 60_000  # bytes: they fit into the kernel's buffers, so no reader is needed meanwhile

_EMPTY = 20  # connections

_UNREAD = 10

_EARLY = 100

_WAVE = 20  # connections that are reset together

_MID_WRITE = 3

_FLOOD = 16 << 20  # bytes

_BLOCKED = 0.2  # seconds

_STEP = 128 << 10  # bytes that each client sends more than the one before

_KEPT = 256 << 10  # bytes that a server may keep, besides those that its socket takes

_FULL = 0.05  # seconds

_AT_ONCE = 0.05  # seconds in which an answer to a half-close has come

_PAUSE = 0.1  # seconds


@check(
    "C1",
    "answers a half-close in full, then ends the stream",
    purpose="A client that has sent everything says so with a half-close (nc does), and reads "
    "until the end. It must get all it is owed, and must not wait for ever.",
    wire="A client sends 60,000 bytes, half-closes (SHUT_WR), and only then reads. No other "
    "client connects meanwhile. Another one sends until the server takes no more, half-closes, "
    "and reads. Then several send about as much as a socket takes, half-close, and read a moment "
    "later.",
    passes="All bytes come back, then the end of the stream (FIN), not a reset.",
    hint="When recv returns nothing, is all that is owed sent, and then the socket closed? By "
    "every process that has a copy of it? After a reset: was something left unread, or SO_LINGER "
    "set?",
    weight=5,
    needs=("L2",),
    consults=("S3", "S6"),
)
def half_close(trial: CheckContext) -> None:
    """C1."""
    line = trial.connect()
    question = trial.text(_HALF_CLOSED)
    with line.cork():  # the last bytes and the end arrive together, however busy this machine is
        line.send(question)
        line.half_close()
    line.expect(trial.answer(question), "reply after the half-close")
    if line.ends(trial.patience):
        line.close()
        if not (trial.by_line or trial.known_to_break("S3") or trial.known_to_break("S6")):
            _half_close_when_full(trial)
            _half_close_when_kept(trial)
        return
    other = trial.connect("B")
    ends_late = line.ends(MOMENT)
    other.close()
    message = f"client A got everything back, but no end of the stream, in {trial.patience:.0f} s"
    if ends_late:
        message += (
            "; it came when another client connected: until then somebody in the server kept the "
            "first one's socket open"
        )
    trial.fail(message)


def _half_close_when_full(trial: CheckContext) -> None:
    """Half-close while the server has output waiting that its socket does not take."""
    line = trial.connect("B", buffer=SMALL_BUFFER)
    flood = trial.text(_FLOOD)
    sent = line.send_until_blocked(flood, _BLOCKED)
    line.half_close()
    line.expect(trial.answer(flood[:sent]), "reply after a half-close with all buffers full")
    if not line.ends(trial.patience):
        trial.fail(f"client B got everything back, but no end, in {trial.patience:.0f} s")


def _half_close_when_kept(trial: CheckContext) -> None:
    """Half-close when the server has read all, and keeps what its socket does not take.

    How much a socket takes is the kernel's to say (tcp_wmem, tcp(7)), and how much a server keeps
    is its own: so there are many sizes, and a few of them are right.
    """
    most = largest_buffer("tcp_wmem")
    sizes = range(most // 2, most + 2 * SMALL_BUFFER + _KEPT, _STEP)
    trial.timeline.add(
        f"{len(sizes)} clients",
        f"one after the other, send {sizes[0]:,} to {sizes[-1]:,} bytes, and half-close",
    )
    for size in sizes:
        line = trial.connect("C", buffer=SMALL_BUFFER)
        question = trial.text(size)
        question = question[: line.send_until_blocked(question, _FULL)]
        line.half_close()
        time.sleep(_PAUSE)  # the server reads on, and nobody reads what it sends
        with failure_context(f"of {len(question):,} bytes before a half-close, "):
            line.expect(trial.answer(question), "reply that the socket had no room for")
        if not line.ends(trial.patience):
            trial.fail(f"client C got everything back, but no end, in {trial.patience:.0f} s")
        line.close()


@check(
    "C2",
    "survives connections without a byte",
    purpose="Port scanners, health checks and impatient people connect and leave.",
    wire="20 times: one client connects and closes; another one connects, half-closes, waits a "
    "moment for the end, and closes.",
    passes="They get nothing (but the greeting, which is S4's), and the next client is served.",
    hint="What does the code do with the empty result of the very first recv? Is it sent, as text?",
    weight=3,
    needs=("L2",),
    consults=("S4",),
)
def empty(trial: CheckContext) -> None:
    """C2."""
    for _ in range(_EMPTY):
        trial.connect("A").close()
        line = trial.connect("B")
        line.half_close()
        if not trial.known_to_break("S4"):  # one cause counts once
            _expect_nothing(trial, line)
        await_end(trial, line)
        line.close()
    _require_next_service(trial, f"after {_EMPTY} clients had left without a byte")


def _expect_nothing(trial: CheckContext, line: ClientConnection) -> None:
    """Fail if bytes come for a client that has said nothing."""
    data = b""
    with suppress(Failure):  # a reset is not what is looked for here
        data = line.read_within(_AT_ONCE)
    if data:
        trial.fail(f"client B had said nothing, and half-closed; it got {data[:48]!r}")


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
    _require_next_service(trial, f"after {_UNREAD} clients had reset")


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
            sock = new_socket(trial)
            sock.setblocking(False)
            raise_own_limit(sock.connect_ex(trial.address))
            wave.append(sock)
        for sock in wave:
            reset(sock)
        _require_next_service(trial, f"after {_WAVE} clients had reset at once")


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
        line.send_until_blocked(flood, _BLOCKED)
        line.close()
    _require_next_service(trial, f"after {_MID_WRITE} clients had vanished")


def _require_next_service(trial: CheckContext, what: str) -> None:
    """Fail unless another client is served now."""
    with failure_context(f"{what}, "):
        line = trial.connect("Z")
        line.ask(trial.text(20))
    line.close()
