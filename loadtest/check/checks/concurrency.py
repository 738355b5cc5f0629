"""Concurrency: nobody waits for anybody else, and nobody gets anybody else's bytes."""

import re
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median

from loadtest.check.client.connection import SMALL_BUFFER, ClientConnection
from loadtest.check.client.crowd import ClientGroup, ScriptedClient, problems, turns
from loadtest.check.evidence import count
from loadtest.check.failure import Failure, failure_context
from loadtest.check.model import check
from loadtest.check.submission import MIB, NotStarted, not_started
from loadtest.check.submission.observed import connected
from loadtest.check.trial import CheckContext, name_of
from loadtest.machine.usage import pss_bytes

_SILENT = 3  # clients
_TURNS = 5  # clients that take turns
_ROUNDS = 20
_STEPS = (5, 50)  # clients, before all
_FLOOD = 64 * MIB
_QUIET = 0.5  # seconds without a byte taken after which the server is taken to be full
_BUFFERED = 16 * MIB  # bytes of its own memory that are too many for one client
_PINGS = 30
_SLOWER = 20  # times
_SLOW = 0.25  # seconds that are a delay on any machine
_TALKERS = 50
_SAID = 20
_CHURN = 300
_LITTLE_CHURN = 60
_TOGETHER = 20
_ABORTS = 0.05
_FEW_DESCRIPTORS = 128
_MANY = 300
_LEFT_OUT = 8
_CLEARING = 1.0  # seconds
_ENOUGH = 4.0  # seconds to watch, once it is known that somebody had to ask again
_SYN_STEPS = (1, 3, 7)  # seconds after which a SYN is repeated (RFC 6298)
_EARLY = 0.05  # seconds by which the kernel may be early


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
    _served_beside(trial, f"while {count(len(silent), 'client')} said nothing")
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
    _served_beside(trial, "while another had sent half a line")
    line.send(b"e\n")
    line.expect(trial.answer(b"half a line\n"), "reply to both halves")


def _served_beside(trial: CheckContext, what: str) -> None:
    line = trial.connect("Z")
    with failure_context(f"{what}, "):
        line.ask(trial.text(60))


@check(
    "N4",
    "serves 5, 50 and 400 clients that stay",
    purpose="Where is the ceiling? A fixed pool, a table of fixed size or select's 1,024 "
    "descriptors show only when enough clients stay.",
    wire="Clients connect one by one, each sends a line and stays. At 5, 50 and --clients of "
    "them, all send a line at once. With --concurrency N: N of them stay; when they have left, "
    "the others come, all at once.",
    passes="Every client gets every answer.",
    hint="What is there a limited number of: threads, processes, slots, descriptors?",
    weight=5,
    needs=("L2",),
)
def ceiling(trial: CheckContext) -> None:
    """N4."""
    wanted = trial.session.clients
    together = trial.at_once(wanted)
    lines: list[ClientConnection] = []
    with trial.timeline.summed_up("clients", "connect one after the other, ask, and stay"):
        for number in range(together):
            before = count(number, "client")
            with failure_context(
                f"with {before} connected and answered, the next of {wanted} is not: "
            ):
                line = trial.connect(str(number + 1))
                line.ask(trial.text(60))
            lines.append(line)
            if len(lines) in {*_STEPS, together}:
                _all_speak(trial, lines)
    if together < wanted:
        for line in lines:
            line.close()
        rest = [ScriptedClient(number, [trial.text(60)]) for number in range(together, wanted)]
        if failed := ClientGroup(trial, rest).visit():
            trial.fail(f"of {wanted} clients, as others left: {problems(failed)}")


def _all_speak(trial: CheckContext, lines: list[ClientConnection]) -> None:
    questions = [trial.text(60) for _ in lines]
    for line, question in zip(lines, questions, strict=True):
        line.send(question)
    for line, question in zip(lines, questions, strict=True):
        with failure_context(f"with {len(lines)} clients connected that all speak at once, "):
            line.expect(trial.answer(question))


@check(
    "N5",
    "takes 400 connections in one instant",
    purpose="The kernel queues connections until they are accepted. Where the queue is full, it "
    "drops them, and clients ask again after 1, 3 and 7 seconds: a server that seems to hang.",
    wire="--clients connections (at most net.core.somaxconn) are opened in one instant; each "
    "sends a line, and leaves when it is answered.",
    passes="All are answered, and nobody had to ask twice (TCP_INFO counts it), be it with the "
    "SYN or with what completes the connection.",
    hint="listen takes a number: what does it mean? (listen(2), and UNP section 4.5)",
    weight=4,
    needs=("L2",),
)
def burst(trial: CheckContext) -> None:
    """N5."""
    trial.timeline.add("server", f"its queue holds what listen said, at most {_longest_queue()}")
    size = min(trial.session.clients, _longest_queue())
    visitors = [ScriptedClient(number, [trial.text(60)]) for number in range(size)]
    failed = ClientGroup(trial, visitors, enough=_ENOUGH).visit()
    again = [
        one
        for one in visitors
        if one.syn_retransmissions
        or (
            one.retransmissions and one.seconds is not None and one.seconds > _SYN_STEPS[0] - _EARLY
        )
    ]
    if not failed and not again:
        return
    parts = []
    if again:
        parts.append(
            f"{len(again)} had to ask again for a connection, because the queue of the listening "
            "socket was full"
        )
        if failed:
            parts.append(f"{len(failed)} were not answered within {_ENOUGH:.0f} s")
    else:
        parts.append(f"{problems(failed)}; none had to ask again, so the queue is not the reason")
    _tell_steps(trial, visitors)
    trial.fail(f"of {size} clients that connected in one instant, {'; and '.join(parts)}")


def _tell_steps(trial: CheckContext, visitors: list[ScriptedClient]) -> None:
    """Put into the timeline how many were answered before each repetition of a SYN."""
    for since, until in pairwise((0, *_SYN_STEPS, float("inf"))):
        served = sum(
            one.seconds is not None and since <= one.seconds + _EARLY < until for one in visitors
        )
        if served:
            how = f"after {since} s or more" if since else "without a second's delay"
            trial.timeline.add(count(served, "client"), f"answered {how}")


def _longest_queue() -> int:
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 128


@check(
    "N6",
    "a slow reader gets everything, slows down nobody, and costs no memory",
    purpose="A client on a bad line reads slowly. Either the server stops reading from it, too, "
    "or it stores without bound what that client does not fetch.",
    wire="A client sends and does not read, until the server takes no more, or has been given 64 "
    "MiB. Meanwhile two others ask 30 times. Then the first one reads.",
    passes="The server's memory grows by no more than 16 MiB (of a server that was not started "
    "here: it does not take all 64 MiB); the others are answered as fast as before, give or take; "
    "the first one gets all its bytes, in order. A server that stops reading while its peer does "
    "not read is fine.",
    hint="What happens to output that the socket does not take: is it lost, is it waited for (and "
    "who waits?), or is it kept (and how much of it?)",
    weight=4,
    needs=("L2",),
)
def slow_reader(trial: CheckContext) -> None:
    """N6."""
    others = [trial.connect(name_of(1 + number)) for number in range(trial.at_once(3) - 1)]
    names = " and ".join(line.name for line in others) or "nobody"
    with trial.timeline.summed_up(names, f"{_PINGS} round trips each"):
        usual = _round_trip(others)
    slow = trial.connect("A", buffer=SMALL_BUFFER)
    before = pss_bytes(trial.server.tree(), files=False) if trial.has_process else None
    block = trial.text(MIB - 8)
    sent = grown = 0
    while sent < _FLOOD:
        taken = slow.send_what_is_taken(b"%07d\n" % (sent // MIB) + block, _QUIET)
        sent += taken
        if before is not None:
            grown = (pss_bytes(trial.server.tree(), files=False) or before) - before
        if taken < MIB or grown > _BUFFERED:
            break
    trial.timeline.add("A", f"has sent {count(sent, 'byte')} and read nothing")
    if grown > _BUFFERED:
        trial.fail(
            f"client A sent {sent / MIB:.0f} MiB and read nothing, and the server's memory grew "
            f"by {grown / MIB:.0f} MiB: it keeps what is not fetched, without bound"
        )
    if before is None and sent == _FLOOD:
        trial.fail(
            f"client A sent {sent / MIB:.0f} MiB and read nothing, and the server took it all: it "
            "keeps what is not fetched, without bound"
        )
    meanwhile = trial.timeline.summed_up(names, f"{_PINGS} round trips each, meanwhile")
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
    """Return the median time for an answer, in seconds; 0 where nobody asks."""
    taken = []
    for _ in range(_PINGS):
        for line in lines:
            begun = time.monotonic()
            line.ask(line.trial.text(60))
            taken.append(time.monotonic() - begun)
    return median(taken) if taken else 0.0


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
        ScriptedClient(number, turns(trial, number, _SAID, lambda: stream.randint(1, 4000)))
        for number in range(_TALKERS)
    ]
    _all_served(ClientGroup(trial, visitors, politely=True))


@check(
    "N8",
    "serves 300 short visits, while one in twenty breaks off",
    purpose="Real clients come and go all the time, and some in the middle of a message.",
    wire="300 clients, 20 at a time, say one to three things and leave; 5 % reset the connection "
    "after they have sent. (60 clients, where C6 failed.)",
    passes="All that do not break off get all their answers.",
    hint="What does one client's failure do to the others?",
    weight=2,
    needs=("L2", "C3", "C4", "C5"),
)
def churn(trial: CheckContext) -> None:
    """N8."""
    stream = trial.stream
    count = (
        _LITTLE_CHURN if trial.known_to_break("C6") else _CHURN
    )  # each that left costs a CPU then
    breaking_off = set(stream.sample(range(count), int(count * _ABORTS)))
    visitors = []
    for number in range(count):
        said = turns(trial, number, stream.randint(1, 3), lambda: stream.randint(1, 2000))
        stops = stream.randrange(len(said)) if number in breaking_off else None
        visitors.append(ScriptedClient(number, said, abort_after=stops))
    _all_served(ClientGroup(trial, visitors, _TOGETHER, politely=True))


def _all_served(crowd: ClientGroup) -> None:
    failed = crowd.visit()
    if not failed:
        return
    first = next((one for one in failed if one.difference is not None), failed[0])
    found = first.difference
    whose = ""
    if found:
        named = re.search(rb"client (\d{4})", first.received[max(0, found.offset - 11) :].lower())
        if named and int(named[1]) != first.number + 1:
            whose = f"client {first.number + 1} got bytes of client {int(named[1])}; "
        else:
            whose = f"client {first.number + 1}: {found.explanation}; "
    raise Failure(f"{whose}of {len(crowd.visitors)} clients, {problems(failed)}", found)


@check(
    "N9",
    "survives running out of file descriptors",
    purpose="Every server runs out of descriptors once. accept fails with EMFILE then: that is a "
    "reason to wait, not to end.",
    wire="The server is started with at most 128 descriptors; clients connect and stay, up to "
    "300, or until they are served no more. Then all leave, and another one comes.",
    passes="The last one is answered, by the same process.",
    hint="Which errors of accept mean that the server is finished, and which that it has to wait? "
    "(accept(2))",
    weight=5,
    needs=("L2", "C3"),
    process=True,
    starts=True,
    bonus=True,
)
def out_of_descriptors(trial: CheckContext) -> None:
    """N9."""
    try:
        server = trial.session.start(nofile=_FEW_DESCRIPTORS)
    except NotStarted as problem:
        raise not_started(problem, f"with at most {_FEW_DESCRIPTORS} descriptors, ") from None
    first = trial.connect("A")
    first.ask(trial.text(20))
    first.close()
    with trial.timeline.summed_up("clients", "connect and stay, until no more are served; leave"):
        served = _exhaust(trial)
    trial.timeline.add("clients", f"{served} were served at a time")
    deadline = time.monotonic() + _CLEARING  # it may still be busy with those that left
    while connected(server.port) and time.monotonic() < deadline:
        time.sleep(0.02)
    if server.status is not None:
        trial.fail(f"when it had no descriptor left for the next client, it {server.death}")
    _served_beside(trial, "after it had run out of descriptors, and all clients had left")
    trial.session.end()  # no other check is to be held with so few


def _exhaust(trial: CheckContext) -> int:
    """Let clients come until no more are served, and leave; return how many were."""
    served: list[ClientConnection] = []
    left_out: list[ClientConnection] = []
    with suppress(Failure):  # whether all are let in is not the question
        while len(served) < _MANY and len(left_out) < _LEFT_OUT:
            name = str(len(served) + len(left_out) + 1)
            line = ClientConnection.connect(
                trial, name, greeting=False, patience=_SYN_STEPS[0] * 2.0
            )
            if left_out:
                left_out.append(line)
                continue
            line.send(b"here\n")
            owed = trial.greeting + trial.answer(b"here\n")
            (served if line.hears(_QUIET, len(owed)) else left_out).append(line)
    for line in served:
        line.close()
    for line in left_out:  # their turn, where the server has not sent them away
        with suppress(Failure):
            line.hears(_QUIET, len(trial.greeting))
            line.send(b"here\n")
            line.hears(_QUIET, len(b"here\n"))
        line.close()
    return len(served)
