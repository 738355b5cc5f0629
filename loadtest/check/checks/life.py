"""Life: it starts, serves one client after another, comes back, and ends when it is told to."""

import signal

from loadtest.check.evidence import difference
from loadtest.check.failure import Failure, NoEchoServer
from loadtest.check.model import check
from loadtest.check.submission.observed import busy_share, holdings, unclosed
from loadtest.check.submission.server import NotStarted, start_failure
from loadtest.check.trial import CheckContext, name_of

_HELLO = b"hello\n"
_GREETING = 0.3  # seconds in which a server that speaks first has spoken
_LONGEST_GREETING = 1024  # bytes
_RESEMBLES = 64  # bytes, the question among them, that are an echo with something added
_IDLE = 3  # clients
_FIRST = (
    "An echo server sends back what it receives; before it does, nothing else can be checked.",
    "Is exactly what was received sent back: all of it, nothing besides, and at once?",
)

_BUSY = (
    "A client that leaves must end the conversation with it, and not the server's work.",
    (
        "What does recv return at the end of a stream, and what does your loop do then? It is no "
        'error, and comes again at once, for ever. (recv(2), "Return value")'
    ),
)
_LOOK = 0.3  # seconds in which a server is watched
_SPINS = 0.5  # of a CPU


@check(
    "L1",
    "starts and accepts a client",
    purpose="Nothing else can be checked on a server that does not listen where it was told to.",
    wire="The command is started with a free port; one client connects, sends a line, and leaves.",
    passes="The port accepts within --timeout. A command that ends before is noticed at once.",
    hint="Take host and port from what the command is given ({host} {port}, or the environment's "
    "HOST and PORT), bind to them, and listen before anything that takes long.",
    weight=4,
    needs=(),
    starts=True,
)
def starts(trial: CheckContext) -> None:
    """L1."""
    if trial.session.submission is not None:
        trial.session.start()
    line = trial.connect()
    line.send(_HELLO)
    # Whether the answer is right does not matter yet.
    trial.session.first_reply = line.read_within(_GREETING, len(_HELLO))
    line.close()
    server = trial.session.server
    if server is not None and server.status == 0 and holdings(server.tree()).processes:
        trial.fail(
            "it went into the background: the process that was started ended with exit code 0, and "
            "left others; a server that is to be graded stays in the foreground"
        )


@check(
    "L2",
    "serves a second client after the first",
    purpose="A server outlives its clients: the first one's leaving must not end it, nor its loop.",
    wire="After a moment's silence, a client sends a line, gets its answer, and leaves; then a "
    "second one does the same.",
    passes="Both get their answer, byte for byte.",
    hint="What ends when a client leaves: the conversation with it, or the loop that accepts?",
    weight=4,
)
def serves_a_second(trial: CheckContext) -> None:
    """L2."""
    for name in ("A", "B"):
        first = name == "A"
        line = trial.connect(name)
        if first:
            _listen_for_a_greeting(trial, line.read_within(_GREETING))
        line.send(_HELLO)
        owed = trial.answer(_HELLO)
        try:
            line.expect(owed)
        except Failure as failure:
            if first and trial.session.first_reply == owed and not failure.received:
                raise _busy_with_the_first(trial, failure) from None
            if first:
                raise _no_echo_server(trial, failure, line.read_within(_GREETING)) from None
            raise Failure(
                f"the first client was answered, the second was not: {failure}", failure.difference
            ) from None
        line.close()


def _listen_for_a_greeting(trial: CheckContext, greeting: bytes) -> None:
    """Note the greeting of a server that speaks first; a long one fails the check."""
    if len(greeting) > _LONGEST_GREETING:
        raise NoEchoServer(
            f"this is not an echo server: it sent {len(greeting):,} bytes in {_GREETING} s before "
            f"it was asked anything ({greeting[:40]!r}...)"
        )
    # A greeting fails S4; everything else can be checked all the same.
    trial.session.greeting = greeting


def _busy_with_the_first(trial: CheckContext, failure: Failure) -> Failure:
    """Return the failure of a server that answered one client, which has left, and no more."""
    answered = "the first client was answered, and has left; the second was not"
    server = trial.session.server
    if server is None:
        return Failure(f"{answered}: {failure}")
    is_spinning = busy_share(server.tree(), _LOOK) > _SPINS
    if not (is_spinning or unclosed(server.port)):
        return Failure(f"{answered}: {failure}")
    signs = ["has not closed its connection"] * bool(unclosed(server.port))
    signs += ["uses a whole CPU"] * is_spinning
    busy = Failure(
        f"{answered}, within {trial.patience:.0f} s: the server is still busy with the one that "
        f"left (it {' and '.join(signs)})"
    )
    busy.instead = _BUSY
    return busy


def _no_echo_server(trial: CheckContext, failure: Failure, more: bytes) -> Failure:
    """Return the failure for a wrong first answer, which says what else the server may be."""
    kind = "not an echo server"
    received = failure.received + more
    if received.startswith((b"HTTP/", b"<!DOCTYPE")):
        behaviour = "it answers in HTTP"
    elif not received:
        behaviour = "it accepts, but the first line that it is sent does not come back"
    elif received.lower() == _HELLO:
        kind = "an echo server of another kind"
        behaviour = (
            f"to {_HELLO!r} it answers {received!r}; if that is the assignment, see --expect"
        )
    elif _HELLO.rstrip().lower() in received.lower() and len(received) <= _RESEMBLES:
        failure.instead = _FIRST
        return failure  # an echo with a mistake
    else:
        behaviour = f"to {_HELLO!r} it answers {received[:40]!r}"
    if not received:
        behaviour += f", within {trial.patience:.0f} s"
    first_difference = difference(received, trial.answer(_HELLO)) if received else None
    other = NoEchoServer(f"this is {kind}: {behaviour}", first_difference)
    other.instead = _FIRST
    return other


@check(
    "L3",
    "can be restarted on the same port at once",
    purpose="After a crash, or for a new version, a server must come back now, not in a minute.",
    wire="A client is in the middle of a conversation when the server is killed (SIGKILL), so that "
    "the server's side of the connection is left in TIME_WAIT; it is started again at once.",
    passes="It listens on the same port again, and answers.",
    hint="bind fails with EADDRINUSE for a minute: which socket option is for that? (socket(7), "
    "UNP section 7.5)",
    weight=4,
    needs=("L2",),
    process=True,
)
def restarts(trial: CheckContext) -> None:
    """L3."""
    line = trial.connect()
    line.ask(_HELLO)
    port = trial.server.port
    trial.timeline.add("server", "killed (SIGKILL), with a client connected")
    trial.session.end()
    line.close()
    trial.timeline.add("server", f"started again on port {port}")
    try:
        trial.session.start(port)
    except NotStarted as problem:
        raise start_failure(
            problem, "after it was killed, and started again on its port, "
        ) from None
    again = trial.connect("B")
    again.ask(_HELLO)


@check(
    "L4",
    "ends on SIGTERM, with clients connected",
    purpose="Operators end servers with SIGTERM: docker stop, systemd, Kubernetes. What "
    "does not end is killed; what leaves processes behind still holds the port.",
    wire="Three clients are connected, the first of them answered, all idle, when the process that "
    "was started gets SIGTERM.",
    passes="That process, and every process that it started, is gone within --timeout.",
    hint="Who waits for whom? Idle clients never hang up by themselves. And which process gets the "
    "signal: only the one that was started, not its children.",
    weight=4,
    needs=("L2",),
    process=True,
)
def ends_on_sigterm(trial: CheckContext) -> None:
    """L4."""
    trial.connect("A").ask(_HELLO)
    for number in range(1, trial.at_once(_IDLE)):
        trial.connect(name_of(number))
    server = trial.server
    trial.timeline.add("server", "gets SIGTERM")
    server.signal(signal.SIGTERM)

    def has_ended() -> bool:
        return server.status is not None and not holdings(server.tree()).processes

    if trial.eventually(has_ended):
        trial.session.end()
        return
    if server.status is None:
        trial.fail(f"it still runs {trial.patience:.0f} s after SIGTERM, with idle clients")
    survivors = holdings(server.tree()).processes
    trial.fail(
        f"on SIGTERM, the process that was started {server.death}; but {survivors} of the "
        f"processes that it had started still run{'' if survivors > 1 else 's'} "
        f"{trial.patience:.0f} s later"
    )
