"""Concurrency, at its limits: many clients, many at once, many in turn, and no descriptors left."""

import time
from contextlib import suppress
from itertools import pairwise

from echoserver.system.sockets import somaxconn
from loadtest.check.checks.common import QUIET, require_all_replies, require_service
from loadtest.check.client.connection import ClientConnection
from loadtest.check.client.crowd import ClientGroup, ScriptedClient, problems, turns
from loadtest.check.evidence import count
from loadtest.check.failure import Failure, failure_context
from loadtest.check.model import check
from loadtest.check.submission.observed import open_connections
from loadtest.check.submission.server import NotStarted, start_failure
from loadtest.check.trial import CheckContext

_STEPS = (5, 50)  # clients, before all

_CHURN = 300

_LITTLE_CHURN = 60

_TOGETHER = 20

_ABORTS = 0.05

_FEW_DESCRIPTORS = 128

_MANY = 300

_LEFT_OUT = 8

_CLEARING = 1.0  # seconds

_ENOUGH = 4.0  # seconds to watch, once a client has had to ask again

_SYN_STEPS = (1, 3, 7)  # seconds after which a SYN is repeated (RFC 6298)

_USUAL_QUEUE = 128  # clients, where the kernel does not tell
_EARLY = 0.05  # seconds by which the kernel may be early


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
    crowd=True,
)
def ceiling(trial: CheckContext) -> None:
    """N4."""
    clients = trial.session.clients
    simultaneous = trial.at_once(clients)
    lines: list[ClientConnection] = []
    with trial.timeline.summarize("clients", "connect one after the other, ask, and stay"):
        for number in range(simultaneous):
            before = count(number, "client")
            with failure_context(
                f"with {before} connected and answered, the next of {clients} is not: "
            ):
                line = trial.connect(str(number + 1))
                line.ask(trial.text(60))
            lines.append(line)
            if len(lines) in {*_STEPS, simultaneous}:
                _all_speak(trial, lines)
    if simultaneous < clients:
        for line in lines:
            line.close()
        rest = [ScriptedClient(number, [trial.text(60)]) for number in range(simultaneous, clients)]
        if failed := ClientGroup(trial, rest).visit():
            trial.fail(f"of {clients} clients, as others left: {problems(failed)}")


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
    crowd=True,
)
def burst(trial: CheckContext) -> None:
    """N5."""
    longest = somaxconn() or _USUAL_QUEUE
    trial.timeline.add("server", f"its queue holds what listen said, at most {longest}")
    size = min(trial.session.clients, longest)
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
    consults=("C6",),
)
def churn(trial: CheckContext) -> None:
    """N8."""
    stream = trial.stream
    client_count = (
        _LITTLE_CHURN if trial.known_to_break("C6") else _CHURN
    )  # with C6 failed, each client that left costs a CPU
    breaking_off = set(stream.sample(range(client_count), int(client_count * _ABORTS)))
    visitors = []
    for number in range(client_count):
        messages = turns(trial, number, stream.randint(1, 3), lambda: stream.randint(1, 2000))
        abort_after = stream.randrange(len(messages)) if number in breaking_off else None
        visitors.append(ScriptedClient(number, messages, abort_after=abort_after))
    require_all_replies(ClientGroup(trial, visitors, _TOGETHER, politely=True))


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
        raise start_failure(problem, f"with at most {_FEW_DESCRIPTORS} descriptors, ") from None
    first = trial.connect("A")
    first.ask(trial.text(20))
    first.close()
    with trial.timeline.summarize("clients", "connect and stay, until no more are served; leave"):
        served = _exhaust(trial)
    trial.timeline.add("clients", f"{served} were served at a time")
    deadline = time.monotonic() + _CLEARING  # it may still be busy with clients that left
    while open_connections(server.port) and time.monotonic() < deadline:
        time.sleep(0.02)
    if server.status is not None:
        trial.fail(f"when it had no descriptor left for the next client, it {server.death}")
    require_service(trial, "after it had run out of descriptors, and all clients had left")
    trial.session.end()  # other checks need more descriptors


def _exhaust(trial: CheckContext) -> int:
    """Connect clients until no more are served, then let them leave; return how many were."""
    served: list[ClientConnection] = []
    left_out: list[ClientConnection] = []
    with suppress(Failure):  # it does not matter whether all can connect
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
            (served if line.read_within(QUIET, len(owed)) else left_out).append(line)
    for line in served:
        line.close()
    for line in left_out:  # the server may serve them now
        with suppress(Failure):
            line.read_within(QUIET, len(trial.greeting))
            line.send(b"here\n")
            line.read_within(QUIET, len(b"here\n"))
        line.close()
    return len(served)
