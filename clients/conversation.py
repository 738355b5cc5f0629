"""One connection's part in a workload, without a socket: what to send, and when.

All engines carry out the same conversations (`clients.steps`), so they send the same, check the
same and count the same, and differ only in how they wait. Where the workload says ``reconnect``, an
engine throws what breaks a connection into the conversation, which may go on.
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator

from clients.content import Content, Frame
from clients.distributions import parse_pauses
from clients.recording import Recorder
from clients.replies import Replies
from clients.steps import FAREWELL, LEAVE, NEVER, RECONNECT, Lost, Owed, ReplyError, Step, Talk
from clients.workload import Workload

_FIRST_RETRY, _LAST_RETRY = 20_000_000, 1_000_000_000  # nanoseconds between tries to reconnect


class Conversation(Replies):
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
        super().__init__(number, workload, content)
        self.share = share
        self.leaving = False
        """Everything is answered, and the server was told that nothing more comes."""
        self.gone = False
        """It has no connection any more."""
        self._lost = 0  # when the connection was lost, if nothing was answered since
        self._retry = 0  # nanoseconds until the next try to make it again
        self._frames = content(number).frames()
        self._recorder = recorder

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
                    yield from self._rest(Owed(number, expected, sent, sent), came)
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

    def _rest(self, owed: Owed, came: bytes | None) -> Talk:
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
        owed: deque[Owed] = deque()
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
                owed.append(Owed(number, expected, due if plan.rate else sent, sent, message))
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

    def _done(self, owed: Owed, now: int, deadline: int) -> None:
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
