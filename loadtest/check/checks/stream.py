"""Stream: TCP carries bytes, in order, without boundaries; each comes back as it was."""

from contextlib import suppress

from loadtest.check.client.connection import SMALL_BUFFER, ClientConnection
from loadtest.check.evidence import count
from loadtest.check.failure import Failure, NotApplicable, failure_context
from loadtest.check.model import check
from loadtest.check.trial import CheckContext

_QUIET = 0.3  # seconds in which a server that says too much has said it
_SPLIT = 0.25  # seconds to wait for half a character, which the server may hold back
_FRAGMENTS = 300
_MESSAGES = 1000
_CHARACTERS = (
    "€漢字😀"  # of three and four bytes; without capitals, for servers that answer in upper case
)
_SIZES = (1, 1023, 1024, 1025, 2048, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1 << 20, 16 << 20)


@check(
    "S1",
    "returns all 256 byte values, NUL and CRLF",
    purpose="TCP carries bytes, not text. A server that decodes, strips, or treats NUL as an end "
    "damages whatever is not plain text.",
    wire="A client sends, each closed by a newline: 0x00 to 0xFF in order and backwards, NULs "
    "between letters, a request as HTTP has it, and white space around CRLF.",
    passes="They come back unchanged (with --expect upper: as bytes.upper() leaves them).",
    hint="Where do bytes become text, or a C string? An echo server needs neither.",
    weight=4,
)
def all_values(trial: CheckContext) -> None:
    """S1."""
    every = bytes(range(256))
    line = trial.connect()
    for part in (every, every[::-1], b"a\0\0\0b", b"GET / HTTP/1.0\r\n\r\n", b" \t\r\n\r\n "):
        line.ask(part if part.endswith(b"\n") else part + b"\n")


@check(
    "S2",
    "returns a UTF-8 character that arrives in pieces",
    purpose="A read returns what has arrived, and that can end in the middle of a character.",
    wire="Characters of three and four bytes are cut at every byte: first one part, then, once "
    "that is answered (or has not been for a while), the rest.",
    passes="All bytes come back unchanged.",
    hint="Is what one recv returns decoded on its own?",
    weight=4,
    needs=("L2",),
)
def split_characters(trial: CheckContext) -> None:
    """S2."""
    line = trial.connect()
    for character in _CHARACTERS:
        question = character.encode() + b"\n"
        for cut in range(1, len(question) - 1):
            line.send(question[:cut])
            early = line.read_within(0.01 if trial.by_line else _SPLIT, cut)
            line.send(question[cut:])
            parts = f"{cut} and {len(question) - cut} bytes, the newline among them"
            with failure_context(f"{character!r} was sent in parts of {parts}: "):
                line.expect(trial.answer(question), early=early)


@check(
    "S3",
    "answers without waiting for a newline",
    purpose="RFC 862: what is received is sent back. A client that never sends a newline is still "
    "owed its bytes.",
    wire="A client sends five bytes without a newline, and waits.",
    passes="They come back, without anything more being sent.",
    hint="Which call waits for a whole line: readline, a scanner, fgets?",
    weight=4,
)
def no_newline(trial: CheckContext) -> None:
    """S3."""
    if trial.by_line:
        raise NotApplicable("with --expect line, what does not end in a newline may wait")
    line = trial.connect()
    line.ask(b"a bit")
    line.ask(b"x")


@check(
    "S4",
    "says nothing unasked: no greeting, nothing after the echo",
    purpose="A client counts what comes back. A greeting, a prompt or a goodbye shifts everything "
    "that follows.",
    wire="A client connects and only listens; then it sends a line, reads the answer, and listens "
    "again; then it half-closes, and listens once more (0.3 s each).",
    passes="Nothing comes but the answer. (That the end comes is C1's.)",
    hint="What does the server send besides what it received?",
    weight=4,
    needs=("L2",),
)
def silent(trial: CheckContext) -> None:
    """S4."""
    line = ClientConnection.connect(trial, "A", greeting=False)
    if data := line.read_within(_QUIET):
        trial.fail(f"before client A had sent anything, it got {data[:48]!r}")
    question = trial.text(50)
    line.ask(question)
    if data := line.read_within(_QUIET):
        trial.fail(f"after the whole answer, and unasked, client A got {data[:48]!r} more")
    line.half_close()
    data = b""
    with suppress(Failure):  # C1 checks how it ends
        data = line.read_within(_QUIET)
    if data:
        trial.fail(f"at the end of the conversation, client A got {data[:48]!r} more")


@check(
    "S5",
    "returns 1-byte fragments, and 1,000 messages before the first read",
    purpose="One send is not one recv: TCP may cut what was sent, or put many sends together.",
    wire="A client sends a text one byte at a time; then it sends 1,000 short messages, and only "
    "then begins to read.",
    passes="All bytes come back in order.",
    hint="Does the server assume that one read returns one message?",
    weight=4,
    needs=("L2",),
)
def fragments(trial: CheckContext) -> None:
    """S5."""
    line = trial.connect()
    question = trial.text(_FRAGMENTS)
    for at in range(len(question)):
        line.send(question[at : at + 1])
    line.expect(trial.answer(question), "reply to 1-byte fragments")
    messages = [trial.text(8 + number % 16) for number in range(_MESSAGES)]
    for message in messages:
        line.send(message)
    line.expect(trial.answer(b"".join(messages)), "reply to 1,000 messages")


@check(
    "S6",
    "returns any size: around 1,024 and 65,536 bytes, 1 MiB, 16 MiB",
    purpose="Buffers have edges, and a send may take only a part of what it is given.",
    wire="One message of each size, on one connection. While it sends, the client reads, but only "
    "when the server takes no more: so that all buffers on the way are full.",
    passes="All bytes come back in order.",
    hint="What does send return, and who sends the rest? What happens at the edge of the buffer?",
    weight=5,
    needs=("L2",),
)
def sizes(trial: CheckContext) -> None:
    """S6."""
    line = trial.connect(buffer=SMALL_BUFFER)
    for size in _SIZES:
        with trial.timeline.summarize("A", f"sends a message of {count(size, 'byte')}"):
            line.converse(trial.text(size), f"reply to a message of {count(size, 'byte')}")
