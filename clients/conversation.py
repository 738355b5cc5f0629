"""One connection's part in a workload, without a socket: what to send and when, and the judgement.

A conversation is a generator. Each step that it yields says what an engine must do; the engine
answers with what has come. So all engines send the same, check the same and count the same, and
differ only in how they wait.

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
of `time.perf_counter_ns`, which all processes of a machine share. Where the workload says
``reconnect``, an engine throws what breaks a connection into the conversation, which may go on.
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from clients.content import TRUNCATED, Content, Frame, diagnose
from clients.distributions import parse_pauses
from clients.recording import Recorder
from clients.workload import Workload

NEVER = 1 << 62
_STILL_COMING = 0.5  # of a timeout: a reply of which a part came so lately is slow, not cut off
_MORE_EVIDENCE = 250_000_000  # nanoseconds to wait for what else comes with a wrong reply
_FIRST_RETRY, _LAST_RETRY = 20_000_000, 1_000_000_000  # nanoseconds between tries to reconnect


class Step(NamedTuple):
    """What a conversation wants: send, then wait."""

    data: bytes
    until: int
    """Nanoseconds; at the latest then it wants to go on."""


RECONNECT = Step(b"", -1)
LEAVE = Step(b"", -2)
FAREWELL = 1_000_000_000  # nanoseconds that a server may take to end what we have ended


class ReplyError(Exception):
    """A reply that was not what was owed; `kind` is how reports name that."""

    def __init__(self, kind: str, explanation: str) -> None:
        super().__init__(explanation)
        self.kind = kind


class IdleEndError(ReplyError):
    """The server ended a connection on which it owed nothing, as one that drains does."""


class Lost(NamedTuple):
    """A connection is lost, and is to be made again."""

    error: BaseException | None
    """What broke it; None: it is the same loss as before, seen again."""


Talk = Generator[bytes | Step | Lost, bytes | None, None]


class _Owed(NamedTuple):
    """A message that was sent and is not answered."""

    number: int
    expected: bytes
    due: int
    sent: int
    message: bytes = b""


class Conversation:
    """What one connection sends, and what it must get back.

    Args:
        number: Of the connection, among all those of the run.
        workload: What to do.
        share: How many messages to send; None: as many as the time allows.
        content: Returns the content of a connection.
        recorder: Takes what is measured.
    """

    def __init__(
        self,
        number: int,
        workload: Workload,
        share: int | None,
        content: Callable[[int], Content],
        recorder: Recorder,
    ) -> None:
        self.number = number
        self.share = share
        self.since = NEVER
        """When the oldest message that is not answered was sent."""
        self.drained = 0
        """Replies that were right, after the time."""
        self.sent = 0
        """Messages."""
        self.leaving = False
        """Everything is answered, and the server was told that nothing more comes."""
        self.gone = False
        """It has no connection any more."""
        self._lost = 0  # when the connection was lost, if nothing was answered since
        self._retry = 0  # nanoseconds until the next try to make it again
        self._workload = workload
        self._content = content
        self._frames = content(number).frames()
        self._recorder = recorder
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

    def talk(self, start: int, deadline: int) -> Talk:
        """Return the conversation, to be run from nanosecond `start` to `deadline`.

        It ends when all is sent and answered. Raises, at the step that shows it:

        Raises:
            ReplyError: What came is not what is owed.
            TimeoutError: A reply took longer than the workload's timeout.
        """
        plan = self._workload
        simple = plan.pipeline == 1 and not (
            plan.rate or plan.think or plan.reconnect_every or plan.reconnect
        )
        frames: Iterator[Frame] = self._frames
        if self.share is not None:
            frames = itertools.islice(frames, self.share)
        talk = (
            self._ping_pong(frames, deadline) if simple else self._stream(frames, start, deadline)
        )
        return talk if self.share is None else self._taking_leave(talk)

    def _taking_leave(self, talk: Talk) -> Talk:
        """Talk, and end the connection: whatever still comes is more than was owed."""
        yield from talk
        self.leaving = True
        yield LEAVE
        came = yield Step(b"", time.perf_counter_ns() + FAREWELL)
        if came:
            yield from self._complain(None, came, 0)

    # -- one message at a time, as fast as they are answered -------------------------------------

    def _ping_pong(self, frames: Iterator[Frame], deadline: int) -> Talk:
        """Ask, check the answer, ask again: the hot loop of every engine."""
        clock, record = time.perf_counter_ns, self._recorder.latencies.append
        self._began = sent = clock()
        number = -1
        try:
            for number, message, expected in frames:
                self.since = sent
                came = yield message
                now = clock()
                if came != expected:
                    yield from self._rest(_Owed(number, expected, sent, sent), came)
                    now = clock()
                if now > deadline:
                    self.drained += 1
                    break
                record((now - sent) // 1000)
                sent = now
        finally:
            self.sent = number + 1
            self._last_reply = sent if sent > self._began else 0
        self.since = NEVER

    def _rest(self, owed: _Owed, came: bytes | None) -> Talk:
        """Take the pieces in which a reply comes, and no more than it."""
        expected, at = owed.expected, 0
        while True:
            data = self._check(came, owed, at)
            end = at + len(data)
            if data != expected[at:end]:
                yield from self._complain(owed, expected[:at] + data, len(expected) - at)
            at = end
            self._part = expected[:at]
            if at == len(expected):
                self._part = b""
                return
            came = yield b""

    # -- a pipeline, a schedule, pauses, reconnections -----------------------------------

    def _stream(self, frames: Iterator[Frame], start: int, deadline: int) -> Talk:  # noqa: C901, PLR0912, PLR0915 - one loop, in the order in which it happens
        """Keep as many messages under way as the pipeline holds, each no sooner than it is due."""
        plan, clock, record = self._workload, time.perf_counter_ns, self._recorder
        dues = self._dues(start)
        pauses = parse_pauses(plan.think).draw(f"{plan.seed}:{self.number}") if plan.think else None
        owed: deque[_Owed] = deque()
        slots = [start] * plan.pipeline  # when each of those that are free may be used
        reconnect_at = plan.reconnect_every or NEVER
        at = 0  # how much has come of the oldest reply
        again = b""  # what was sent over a connection that was lost
        due, frame = next(dues), next(frames, None)
        now = max(start, clock())
        while True:
            batch: list[bytes] = [again] if again else []
            until, again = NEVER, b""
            reconnect = False
            while frame is not None and slots:
                ready = max(slots[0], due)
                if now < ready:
                    until = ready
                    break
                if now >= deadline:
                    frame = None
                    break
                if self.sent == reconnect_at:
                    reconnect = not owed
                    break
                heapq.heappop(slots)
                number, message, expected = frame
                sent = clock() if batch else now
                record.lag.append((sent - ready) // 1000)
                owed.append(_Owed(number, expected, due if plan.rate else sent, sent, message))
                batch.append(message)
                self.sent += 1
                due, frame = next(dues), next(frames, None)
            self.since = owed[0].sent if owed else NEVER
            if not (owed or reconnect) and (frame is None or until >= deadline):
                return
            try:
                if reconnect:  # `now` stays: what it takes to connect is part of the next message
                    reconnect_at += plan.reconnect_every or NEVER
                    yield RECONNECT
                    continue
                came = yield b"".join(batch) if until == NEVER else Step(b"".join(batch), until)
                now = clock()
                if came is None:
                    continue
                if not came:
                    raise self._ended(owed[0] if owed else None, at)
            except (OSError, ReplyError) as error:
                if not plan.reconnect:
                    raise
                if not (yield from self._regain(error, deadline)):
                    return
                now, at, self._part = clock(), 0, b""
                owed = deque(one._replace(sent=now) for one in owed)
                again = b"".join(one.message for one in owed)
                continue
            data = self._check(came, owed[0] if owed else None, at)
            used = 0
            while used < len(data):
                if not owed:
                    yield from self._complain(None, data[used:], 0)
                first = owed[0]
                take = min(len(data) - used, len(first.expected) - at)
                if data[used : used + take] != first.expected[at : at + take]:
                    reply = first.expected[:at] + data[used:]
                    missing = sum(len(one.expected) for one in owed) - len(reply)
                    yield from self._complain(first, reply, missing)
                used, at = used + take, at + take
                if at == len(first.expected):
                    owed.popleft()
                    at = 0
                    self._done(first, now, deadline)
                    heapq.heappush(slots, now + int(next(pauses) * 1e9) if pauses else now)
            self._part = owed[0].expected[:at] if owed else b""

    def _regain(
        self, error: BaseException, deadline: int
    ) -> Generator[bytes | Step | Lost, bytes | None, bool]:
        """Make a connection again that was lost; tell whether there is time to go on.

        That it is made shows when something is answered: until then, each failure is one more try
        of the same loss, after a pause. It is given up where they have taken the whole timeout.
        """
        now = time.perf_counter_ns()
        self.since = NEVER
        if self._lost and now - self._lost > self._patience:
            raise error
        yield Lost(None if self._lost else error)
        self._lost = self._lost or now
        while now < deadline:
            if self._retry:
                yield Step(b"", now + self._retry)
            self._retry = min(max(_FIRST_RETRY, 2 * self._retry), _LAST_RETRY)
            try:
                yield RECONNECT
            except OSError:
                now = time.perf_counter_ns()
                if now - self._lost > self._patience:
                    raise
            else:
                return True
        self.give_up()
        return False

    def _dues(self, start: int) -> Iterator[int]:
        """Return when this connection's messages are due: all take turns."""
        plan, schedule = self._workload, self._workload.schedule
        if schedule is None:
            return itertools.repeat(0)
        due, everyone = schedule.due, plan.asking
        return (start + due(number) for number in itertools.count(self.number, everyone))

    def _done(self, owed: _Owed, now: int, deadline: int) -> None:
        if self._lost:
            self._recorder.recoveries.append((now - max(self._lost, owed.due)) // 1000)
            self._lost = self._retry = 0
            self.gone = False
        if now > deadline:
            self.drained += 1
            return
        self._last_reply = now
        record = self._recorder
        record.latencies.append((now - owed.due) // 1000)
        if self._workload.rate:
            record.raw.append((now - owed.sent) // 1000)

    # -- judgement -------------------------------------------------------------------------------

    def _check(self, came: bytes | None, owed: _Owed | None, at: int) -> bytes:
        """Return what came; complain where it is the end, or too late."""
        if came:
            starved, self._heard = self.starved, time.perf_counter_ns()
            if owed is not None and not starved and self._heard - owed.sent > self._patience:
                raise self.late()
            return came
        raise self._ended(owed, at)

    def _ended(self, owed: _Owed | None, at: int) -> ReplyError:
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

    def _complain(self, owed: _Owed | None, reply: bytes, missing: int) -> Talk:
        """Wait a moment for what else comes, and raise what is wrong with it."""
        until = time.perf_counter_ns() + _MORE_EVIDENCE
        while missing > 0 and time.perf_counter_ns() < until:
            came = yield Step(b"", until)
            if not came:
                break
            reply += came
            missing -= len(came)
        raise self.wrong(owed, reply)

    def wrong(self, owed: _Owed | None, reply: bytes) -> ReplyError:
        """Return what is wrong with a reply; None for `owed`: nothing was."""
        number, expected = (owed.number, owed.expected) if owed else (self.sent, b"")
        content = self._content(self.number)
        connections = self._workload.connections
        found = diagnose(content, number, reply, expected, self._content, connections)
        return ReplyError(found.kind, found.explanation)
