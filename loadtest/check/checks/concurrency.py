"""Concurrency: nobody waits for anybody else, and nobody gets anybody else's bytes."""

import time
from statistics import median

from loadtest.check.checks.common import QUIET, require_all_replies, require_service
from loadtest.check.client.connection import SMALL_BUFFER, ClientConnection
from loadtest.check.client.crowd import ClientGroup, ScriptedClient, turns
from loadtest.check.evidence import count
from loadtest.check.failure import failure_context
from loadtest.check.model import check
from loadtest.check.trial import CheckContext, name_of
from loadtest.machine.sockets import kernel_room
from loadtest.machine.usage import pss_bytes

MIB = 1 << 20
_SILENT = 3  # clients

_TURNS = 5  # clients that take turns

_ROUNDS = 20

_FLOOD = 64 * MIB

_BUFFERED = 16 * MIB  # bytes that a server may keep for one client, besides what the kernel does

_PINGS = 30

_SLOWER = 20  # times

_SLOW = 0.25  # seconds that are a delay on any machine

_TALKERS = 50

_MESSAGES = 20


@check(
    "N1",
    "a silent client blocks nobody",
    purpose="The difference between a concurrent server and one that serves in turn. A connect "
    "proves nothing, for the kernel accepts by itself: only an answer does.",
    wire="Three clients connect and say nothing. A fourth sends a line.",
    passes="The fourth is answered while the others stay silent; then each of those is, too.",
    hint="What does the server do between accepting a client and hearing from it?",
    weight=5,
    needs=("L2",),
)
def silent_client(trial: CheckContext) -> None:
    """N1."""
    silent = [trial.connect(name_of(n)) for n in range(trial.at_once(_SILENT + 1, least=2) - 1)]
    require_service(trial, f"while {count(len(silent), 'client')} said nothing")
    for line in silent:
        line.ask(b"at last\n", "reply after a long silence")


@check(
    "N2",
    "clients take turns on open connections",
    purpose="Conversations overlap. A server that serves one to its end, before it turns to the "
    "next, is not concurrent.",
    wire="Five clients are connected, and send and get one message at a time, in random order, "
    "20 rounds long.",
    passes="Each is answered before the next one speaks.",
    hint="After one answer, does the server wait for the same client's next message?",
    weight=3,
    needs=("L2",),
)
def interleaved(trial: CheckContext) -> None:
    """N2."""
    lines = [trial.connect(name_of(number)) for number in range(trial.at_once(_TURNS, least=2))]
    for round_ in range(_ROUNDS):
        for line in trial.stream.sample(lines, len(lines)):
            line.ask(trial.text(trial.stream.randint(1, 200)), f"reply in round {round_ + 1}")


@check(
    "N3",
    "half a line blocks nobody",
    purpose="A client that stops in the middle of a message must not keep the server waiting for "
    "the rest of it.",
    wire="A client sends ten bytes without a newline, and stops. Another one sends a line.",
    passes="The second one is answered; the first gets all of its line once it has sent the rest.",
    hint="Does a call that waits for a whole message run where it holds up everybody?",
    weight=3,
    needs=("L2",),
)
def half_a_line(trial: CheckContext) -> None:
    """N3."""
    trial.at_once(2, least=2)
    line = trial.connect("A")
    line.send(b"half a lin")
    require_service(trial, "while another had sent half a line")
    line.send(b"e\n")
    line.expect(trial.answer(b"half a line\n"), "reply to both halves")


@check(
    "N6",
    "a slow reader gets everything, slows down nobody, and costs no memory",
    purpose="A client on a bad line reads slowly. Either the server stops reading from it, too, "
    "or it stores without bound what that client does not fetch.",
    wire="A client sends and does not read, until the server takes no more, or has been given 16 "
    "MiB more than the kernel can hold (64 MiB at least where it was not started here). Meanwhile "
    "two others ask 30 times. Then the first one reads.",
    passes="The server takes no more at some point; the others are answered as fast as before, "
    "give or take; the first one gets all its bytes, in order. A server that stops reading while "
    "its peer does not read is fine, whatever its memory does meanwhile.",
    hint="What happens to output that the socket does not take: is it lost, is it waited for (and "
    "who waits?), or is it kept (and how much of it?)",
    weight=4,
    needs=("L2",),
    consults=("S3",),
)
def slow_reader(trial: CheckContext) -> None:
    """N6."""
    others = [trial.connect(name_of(1 + number)) for number in range(trial.at_once(3) - 1)]
    names = " and ".join(line.name for line in others) or "nobody"
    with trial.timeline.summarize(names, f"{_PINGS} round trips each"):
        usual = _round_trip(others)
    slow = trial.connect("A", buffer=SMALL_BUFFER)
    before = pss_bytes(trial.server.tree(), files=False) if trial.has_process else None
    block = trial.text(MIB - 8)
    # What a collector's heap or a runtime's buffers grow by says little; that a server goes on
    # taking what it cannot get rid of says all.
    flood = -(-(kernel_room() + _BUFFERED) // MIB) * MIB
    flood = flood if trial.has_process else max(flood, _FLOOD)
    sent = 0
    while sent < flood:
        size = slow.send_until_blocked(b"%07d\n" % (sent // MIB) + block, QUIET)
        sent += size
        if size < MIB:
            break
    trial.timeline.add("A", f"has sent {count(sent, 'byte')} and read nothing")
    if sent >= flood:
        growth = (pss_bytes(trial.server.tree(), files=False) or 0) - before if before else 0
        memory = f", and its memory grew by {growth / MIB:.0f} MiB" if growth > 0 else ""
        trial.fail(
            f"client A sent {sent / MIB:.0f} MiB and read nothing, and the server took it all"
            f"{memory}: it keeps what is not fetched, without bound"
        )
    meanwhile = trial.timeline.summarize(names, f"{_PINGS} round trips each, meanwhile")
    with failure_context("while client A did not read, "), meanwhile:
        during = _round_trip(others)
    if during > max(_SLOW, _SLOWER * usual):
        trial.fail(
            f"while client A did not read, the others waited {during * 1000:,.0f} ms for an "
            f"answer, where it was {usual * 1000:.1f} ms before"
        )
    for number in range(-(-sent // MIB)):
        owed = trial.answer((b"%07d\n" % number + block)[: sent - number * MIB])
        if (trial.by_line or trial.known_to_break("S3")) and len(owed) < MIB:
            owed = owed[: owed.rfind(b"\n") + 1]
        slow.expect(owed, f"late reply (in MiB {number + 1} of it)")


def _round_trip(lines: list[ClientConnection]) -> float:
    """Return the median time for an answer, in seconds; 0 if there are no clients."""
    seconds = []
    for _ in range(_PINGS):
        for line in lines:
            start = time.monotonic()
            line.ask(line.trial.text(60))
            seconds.append(time.monotonic() - start)
    return median(seconds) if seconds else 0.0


@check(
    "N7",
    "nobody gets another one's bytes",
    purpose="A buffer that is shared between clients mixes up their data: the worst thing that a "
    "server can do, and it shows only when several are served at the same moment.",
    wire="50 clients talk at the same time, 20 messages each, of 21 to 4,000 bytes; every message "
    "names its client.",
    passes="Each gets its own bytes, in order.",
    hint="Which variable do two conversations share?",
    weight=3,
    needs=("L2",),
)
def no_mix_up(trial: CheckContext) -> None:
    """N7."""
    stream = trial.stream
    visitors = [
        ScriptedClient(number, turns(trial, number, _MESSAGES, lambda: stream.randint(1, 4000)))
        for number in range(_TALKERS)
    ]
    require_all_replies(ClientGroup(trial, visitors, politely=True))
