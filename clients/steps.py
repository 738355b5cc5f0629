"""What a conversation asks of an engine, and how one fails.

A conversation is a generator. Each step that it yields says what an engine must do; the engine
answers with what has come.

======================  =====================================  =================================
it yields               the engine                             and resumes it with
======================  =====================================  =================================
``b"..."``              sends that                             what came, as soon as some came
``Step(b"...", until)`` sends that, and waits until then       the same; None if nothing came
`Lost(error)`           counts it, and closes the connection   None
`RECONNECT`             reconnects                             None
`LEAVE`                 half-closes it: nothing more is sent   None
======================  =====================================  =================================

An empty ``bytes`` stands for the end of the stream, as it does for recv(2). Times are nanoseconds
of `time.perf_counter_ns`, which all processes of a machine share.
"""

from collections.abc import Generator
from typing import NamedTuple

NEVER = 1 << 62
"""A time that does not come."""


class Step(NamedTuple):
    """A conversation wants bytes sent, and then to wait."""

    data: bytes
    until: int
    """Nanoseconds: the conversation goes on at this time at the latest."""


RECONNECT = Step(b"", -1)
LEAVE = Step(b"", -2)
FAREWELL = 1_000_000_000  # nanoseconds that a server may take to end what we have ended


class Lost(NamedTuple):
    """A connection is lost, and is to be made again."""

    error: BaseException | None
    """What broke it; None: it is the same loss as before, seen again."""


Talk = Generator[bytes | Step | Lost, bytes | None, None]
"""A conversation that is under way."""


class Owed(NamedTuple):
    """A message that was sent and is not answered."""

    number: int
    expected: bytes
    due: int
    sent: int
    message: bytes = b""


class ReplyError(Exception):
    """A reply that was not what was owed; `kind` is how reports name that."""

    def __init__(self, kind: str, explanation: str) -> None:
        super().__init__(explanation)
        self.kind = kind


class IdleEndError(ReplyError):
    """The server ended a connection on which it owed nothing, as one that drains does."""
