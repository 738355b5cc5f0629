"""What one connection is owed, and whether what comes is that."""

import time
from collections.abc import Callable

from clients.content import TRUNCATED, Content, diagnose
from clients.steps import NEVER, IdleEndError, Owed, ReplyError, Step, Talk
from clients.workload import Workload

_STILL_COMING = 0.5  # of a timeout: a reply of which a part came so lately is slow, not cut off
_MORE_EVIDENCE = 250_000_000  # nanoseconds to wait for what else comes with a wrong reply


class Replies:
    """The replies of one connection: those that are owed, and those that came.

    Args:
        number: Of the connection, among all those of the run.
        workload: What to do.
        content: Returns the content of a connection.
    """

    def __init__(self, number: int, workload: Workload, content: Callable[[int], Content]) -> None:
        self.number = number
        self.since = NEVER
        """When the oldest message that is not answered was sent."""
        self.drained = 0
        """Replies that were right, after the time."""
        self.sent = 0
        """Messages."""
        self._workload = workload
        self._content = content
        self._patience = int(workload.timeout * 1e9)
        self._began = NEVER  # when a ping-pong sent its first message
        self._last_reply = 0
        self._heard = 0  # when a piece of a reply came last
        self._part = b""  # the pieces so far

    @property
    def last_reply(self) -> int:
        """When the last reply came within the time; 0: none did."""
        if self._began < self.since < NEVER:  # a ping-pong asks when it is answered
            return self.since
        return self._last_reply

    @property
    def served(self) -> bool:
        """A reply was right, within the time."""
        return self.last_reply > 0

    @property
    def starved(self) -> bool:
        """It waits, and has never had a byte."""
        return self.since != NEVER and not (self._heard or self.last_reply or self.drained)

    def give_up(self) -> None:
        """Stop waiting for replies."""
        self._last_reply = self.last_reply
        self.since = NEVER

    def _check(self, came: bytes | None, owed: Owed | None, at: int) -> bytes:
        """Return what came; complain where it is the end, or too late."""
        if came:
            starved, self._heard = self.starved, time.perf_counter_ns()
            if owed is not None and not starved and self._heard - owed.sent > self._patience:
                raise self.late()
            return came
        raise self._ended(owed, at)

    def _ended(self, owed: Owed | None, at: int) -> ReplyError:
        """Return what it means that the stream ended, after so many bytes of the oldest reply."""
        where = f"connection {self.number}, message {owed.number if owed else self.sent}"
        if owed is None:
            return IdleEndError("closed", f"{where}: the server ended an idle connection")
        size = len(owed.expected)
        ended = f"{where}: the server closed the connection after {at} of {size} bytes"
        return ReplyError(TRUNCATED if at else "closed", ended)

    def late(self) -> Exception:
        """Return what is to be said when the oldest message's time is over."""
        silent = time.perf_counter_ns() - self._heard
        if not self._part or silent < self._patience * _STILL_COMING:
            return TimeoutError()
        explanation = f"connection {self.number}: {len(self._part)} bytes of a reply came in time"
        return ReplyError(TRUNCATED, f"{explanation}, the last {self._part[-16:]!r}")

    def _complain(self, owed: Owed | None, reply: bytes, missing: int) -> Talk:
        """Wait a moment for what else comes, and raise what is wrong with it."""
        until = time.perf_counter_ns() + _MORE_EVIDENCE
        while missing > 0 and time.perf_counter_ns() < until:
            came = yield Step(b"", until)
            if not came:
                break
            reply += came
            missing -= len(came)
        raise self.wrong(owed, reply)

    def wrong(self, owed: Owed | None, reply: bytes) -> ReplyError:
        """Return what is wrong with a reply; None for `owed`: nothing was."""
        number, expected = (owed.number, owed.expected) if owed else (self.sent, b"")
        content = self._content(self.number)
        connections = self._workload.connections
        found = diagnose(content, number, reply, expected, self._content, connections)
        return ReplyError(found.kind, found.explanation)
