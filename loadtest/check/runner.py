"""Carries out checks, one after the other, each against a server that is known to be well."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loadtest.check.evidence import Evidence
from loadtest.check.failure import Failure, NoEchoServer, NotApplicable
from loadtest.check.model import ERROR, FAILED, PASSED, SKIPPED, Check, Report, Result
from loadtest.check.submission.server import CannotGrade, NotStarted, not_started
from loadtest.check.trial import CheckContext, Session

_DYING = 0.1  # seconds that a process which has just closed its sockets may take to end
_ALIVE = b"alive?\n"
_OVER = "the time for everything (--total-timeout) was over"
_NOT_YET = "not reached"

Watcher = Callable[[Report, Result], None]


@dataclass(slots=True)
class Runner:
    """Runs checks in a session, and reports after each."""

    session: Session
    checks: Sequence[Check]
    report: Report
    watcher: Watcher
    """Told of each result, when the report holds it."""
    build: str | None = None
    """A command that must succeed before the server can be started."""

    def run(self) -> None:
        """Run everything, as often as wanted; the report is complete afterwards."""
        begun = time.monotonic()
        verdicts: dict[str, str] = {}
        stopped = ""
        try:
            for number, one in enumerate(self.checks):
                result = self.report.results[number]
                reason = self._reason(one, verdicts, stopped)
                if not reason and time.monotonic() >= self.session.deadline:
                    reason = _OVER
                if reason:
                    result.status, result.message = SKIPPED, reason
                else:
                    stopped = self._repeated(one, result)
                verdicts[one.id] = result.status
                if result.status == FAILED:
                    self.session.failed.add(one.id)
                self.report.seconds = time.monotonic() - begun
                self.watcher(self.report, result)
        finally:
            self.session.end()
        self.report.complete = True

    def _reason(self, one: Check, verdicts: dict[str, str], stopped: str) -> str:
        """Return why a check need not be tried."""
        if one.process and self.session.submission is None:
            return "it needs the server's process: let echoload start it (-- COMMAND)"
        if stopped:
            return stopped
        for needed in one.needs:
            if verdicts.get(needed, PASSED) != PASSED:
                which = "was skipped" if verdicts[needed] == SKIPPED else "failed"
                return f"it needs {needed}, which {which}"
        return ""

    def _repeated(self, one: Check, result: Result) -> str:
        """Carry out a check as often as wanted; return why nothing more should be, if so."""
        begun = time.monotonic()
        failed, stopped = 0, ""
        for time_ in range(self.report.repeat):
            tried = replace(result)
            session = self.session
            seed = session.seed
            session.seed = seed + time_
            try:
                stopped = self._carry_out(one, tried) or stopped
            finally:
                session.seed = seed
            if tried.status == FAILED:
                failed += 1
            if tried.status != PASSED and result.status != FAILED:
                _take(result, tried)
            if tried.status in {SKIPPED, ERROR} or stopped:
                break
        else:
            if not failed:
                result.status, result.message = PASSED, ""
        if failed and self.report.repeat > 1:
            result.message += f" (in {failed} of {time_ + 1} times)"
        result.seconds = time.monotonic() - begun
        return stopped

    def _carry_out(self, one: Check, result: Result) -> str:
        """Carry out a check once; return why nothing more should be, if so."""
        session = self.session
        trial = CheckContext(session, one.id)
        stopped = ""
        try:
            try:
                self._build()
                used_up = session.server is not None and session.server.status is not None
                # One that spins when clients have left is slow for the next check's clients.
                if used_up or session.failed & {"L2", "C6"}:
                    session.end()
                if session.submission is not None and session.server is None and not one.starts:
                    session.start()
                one.run(trial)
            except NotStarted as problem:
                raise not_started(problem) from None
            result.status = PASSED
        except NotApplicable as reason:
            result.status, result.message, result.applicable = SKIPPED, str(reason), False
        except NoEchoServer as failure:
            self._failed(result, trial, failure)
            stopped = f"{one.id} found that this is not an echo server"
        except Failure as failure:
            self._failed(result, trial, failure)
        except CannotGrade as problem:
            result.status, result.message = ERROR, f"the grader itself failed: {problem}"
        except Exception as problem:  # noqa: BLE001 - one check's trouble is not the next one's
            result.status = ERROR
            result.message = f"the grader itself failed: {type(problem).__name__}: {problem}"
        finally:
            trial.close()
        if result.status == FAILED and time.monotonic() >= session.deadline:
            result.status, result.message, result.evidence = SKIPPED, _OVER, Evidence()
        return stopped or self._afterwards(one, result, trial)

    def _build(self) -> None:
        """Build the server, before the first check that is carried out."""
        if self.build is not None and self.session.submission is not None:
            left = max(1.0, self.session.deadline - time.monotonic())
            self.session.submission.build(self.build, left)
            self.build = None

    def _failed(self, result: Result, trial: CheckContext, failure: Failure) -> None:
        result.status, result.message = FAILED, str(failure)
        result.purpose, result.hint = failure.instead or (result.check.purpose, result.check.hint)
        result.evidence = Evidence(failure.difference, trial.timeline.lines())
        server = self.session.server
        if server is not None:
            server.await_exit(_DYING)  # what a lost connection was the first sign of
            result.evidence.server = server.state()
            if server.death and server.death not in result.message:
                result.message += f". The process {server.death}"
        if failure.output is not None:
            result.evidence.output = failure.output
        elif server is not None:
            result.evidence.output = server.output()

    def _afterwards(self, one: Check, result: Result, trial: CheckContext) -> str:
        """See that the server is well, or has gone; return why nothing more can be checked."""
        session = self.session
        # L1 asks nothing, and where L2 failed, it is known what happens.
        asked = one.needs and "L2" not in session.failed
        there = session.server is not None or session.submission is None
        if result.status == PASSED and asked and there:
            after = CheckContext(session, one.id, trial.timeline)
            if (failure := _complaint(after)) is not None:
                changed = Failure(
                    "what was asked for came, but afterwards a new client was not served: "
                    f"{failure}",
                    failure.difference,
                )
                self._failed(result, after, changed)
        if result.status == PASSED and session.server is not None and session.server.lost:
            self._failed(result, trial, Failure(f"the server {session.server.death}"))
        if result.status in {FAILED, ERROR}:
            session.end()  # the next check begins with a new one
            if session.submission is None and _complaint(CheckContext(session, one.id)) is not None:
                return f"after {one.id}, the server did not answer any more"
        return ""


def _complaint(trial: CheckContext) -> Failure | None:
    """Return what a new client has to complain about."""
    try:
        trial.connect("afterwards").ask(_ALIVE)
    except Failure as failure:
        return failure
    finally:
        trial.close()
    return None


def _take(result: Result, tried: Result) -> None:
    result.status, result.message = tried.status, tried.message
    result.purpose, result.hint = tried.purpose, tried.hint
    result.evidence, result.applicable = tried.evidence, tried.applicable


def blank(
    checks: Sequence[Check], weights: dict[str, float], *, started_here: bool
) -> list[Result]:
    """Return results of checks that are yet to be carried out."""
    return [
        Result(
            one,
            SKIPPED,
            weights.get(one.id, one.weight),
            message=_NOT_YET,
            applicable=started_here or not one.process,
        )
        for one in checks
    ]
