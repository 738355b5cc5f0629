"""Carries out checks, one after the other, each against a server that is known to work."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from loadtest.check.catalogue import in_order, prerequisites
from loadtest.check.evidence import Evidence
from loadtest.check.failure import Failure, NoEchoServer, NotApplicable, OwnLimitReached
from loadtest.check.model import ERROR, FAILED, PASSED, SKIPPED, Check, Report, Result
from loadtest.check.submission.server import CannotGrade, NotStarted, start_failure
from loadtest.check.trial import CheckContext, Session

_EXIT_GRACE = 0.1  # seconds that a process may take to end after it has closed its sockets
_PROBE = b"alive?\n"
_OUT_OF_TIME = "the time for everything (--total-timeout) was over"
NOT_REACHED = "not reached"

Watcher = Callable[[Report, Result], None]


@dataclass(slots=True)
class Runner:
    """Runs checks in a session, and reports after each."""

    session: Session
    checks: Sequence[Check]
    report: Report
    watcher: Watcher
    """Called with each result, when the report holds it."""
    build: str | None = None
    """A command that must succeed before the server can be started."""

    def run(self) -> None:
        """Run all checks, as often as the report says; the report is complete afterwards."""
        start = time.monotonic()
        verdicts: dict[str, Result] = {}
        stop_reason = ""
        reported = {result.check.id: result for result in self.report.results}
        try:
            for one in in_order([*self.checks, *prerequisites(self.checks)]):
                is_reported = one.id in reported
                result = reported[one.id] if is_reported else Result(one, SKIPPED, 0.0)
                reason = self._reason(one, verdicts, stop_reason)
                if not reason and time.monotonic() >= self.session.deadline:
                    reason = _OUT_OF_TIME
                own_problem = self._own_problem(one, verdicts)
                if own_problem:
                    result.status, result.message = ERROR, own_problem
                elif reason:
                    result.status, result.message = SKIPPED, reason
                elif not is_reported:
                    stop_reason = self._run_once(one, result)
                    if stop_reason:
                        stop_reason += f": {result.message}"
                else:
                    stop_reason = self._run_repeatedly(one, result)
                verdicts[one.id] = result
                if result.status == FAILED:
                    self.session.failed_checks.add(one.id)
                if is_reported:
                    self.report.seconds = time.monotonic() - start
                    self.watcher(self.report, result)
        finally:
            self.session.end()
        self.report.complete = True

    @staticmethod
    def _own_problem(one: Check, verdicts: dict[str, Result]) -> str:
        """Return what kept this grader from carrying out what a check needs; empty: nothing."""
        problems = (verdicts[name] for name in one.needs if verdicts[name].status == ERROR)
        return next((problem.message for problem in problems), "")

    def _reason(self, one: Check, verdicts: dict[str, Result], stop_reason: str) -> str:
        """Return why a check is skipped; empty: it is not."""
        if one.process and self.session.submission is None:
            return "it needs the server's process: let echoload start it (-- COMMAND)"
        if stop_reason:
            return stop_reason
        for needed_id in one.needs:
            needed = verdicts[needed_id]
            if needed.status != PASSED:
                outcome = "was skipped" if needed.status == SKIPPED else "failed"
                # What is not in the report is told here.
                is_reported = any(one.id == needed_id for one in self.checks)
                why = "" if is_reported else f": {needed.message}"
                return f"it needs {needed_id}, which {outcome}{why}"
        return ""

    def _run_repeatedly(self, one: Check, result: Result) -> str:
        """Carry out a check as often as the report says; return why no more should be run."""
        start = time.monotonic()
        failures, stop_reason = 0, ""
        for number in range(self.report.repeat):
            attempt = replace(result)
            session = self.session
            seed = session.seed
            session.seed = seed + number
            try:
                stop_reason = self._run_once(one, attempt) or stop_reason
            finally:
                session.seed = seed
            if attempt.status == FAILED:
                failures += 1
            if attempt.status != PASSED and result.status != FAILED:
                _copy_outcome(result, attempt)
            if attempt.status in {SKIPPED, ERROR} or stop_reason:
                break
        else:
            if not failures:
                result.status, result.message = PASSED, ""
        if failures and self.report.repeat > 1:
            result.message += f" (in {failures} of {number + 1} times)"
        result.seconds = time.monotonic() - start
        return stop_reason

    def _run_once(self, one: Check, result: Result) -> str:
        """Carry out a check once; return why no more checks should be run."""
        session = self.session
        trial = CheckContext(session, one.id)
        stop_reason = ""
        try:
            try:
                self._build()
                has_exited = session.server is not None and session.server.status is not None
                # A server that spins after clients have left is slow for those of the next check.
                if has_exited or session.failed_checks & {"L2", "C6"}:
                    session.end()
                if session.submission is not None and session.server is None and not one.starts:
                    session.start()
                one.run(trial)
            except NotStarted as problem:
                raise start_failure(problem) from None
            result.status = PASSED
        except NotApplicable as reason:
            result.status, result.message, result.applicable = SKIPPED, str(reason), False
        except NoEchoServer as failure:
            self._record_failure(result, trial, failure)
            stop_reason = f"{one.id} found that this is not an echo server"
        except Failure as failure:
            self._record_failure(result, trial, failure)
        except Exception as problem:  # noqa: BLE001 - a broken check must not stop the next one
            result.status, result.message = ERROR, _own_message(problem)
        finally:
            trial.close()
        # A build that took all the time is what failed.
        is_built = self.build is None
        if result.status == FAILED and is_built and time.monotonic() >= session.deadline:
            result.status, result.message, result.evidence = SKIPPED, _OUT_OF_TIME, Evidence()
        return stop_reason or self._check_afterwards(one, result, trial)

    def _build(self) -> None:
        """Build the server, before the first check that is carried out."""
        if self.build is not None and self.session.submission is not None:
            seconds = max(1.0, self.session.deadline - time.monotonic())
            self.session.submission.build(self.build, seconds)
            self.build = None

    def _record_failure(self, result: Result, trial: CheckContext, failure: Failure) -> None:
        result.status, result.message = FAILED, str(failure)
        result.purpose, result.hint = failure.instead or (result.check.purpose, result.check.hint)
        result.evidence = Evidence(failure.difference, trial.timeline.lines())
        server = self.session.server
        if server is not None:
            server.await_exit(_EXIT_GRACE)  # a lost connection may have been its first sign
            result.evidence.server = server.state()
            if server.death and server.death not in result.message:
                result.message += f". The process {server.death}"
        if failure.output is not None:
            result.evidence.output = failure.output
        elif server is not None:
            result.evidence.output = server.output()

    def _check_afterwards(self, one: Check, result: Result, trial: CheckContext) -> str:
        """Verify that the server still works; return why nothing more can be checked."""
        session = self.session
        # L1 needs no answer, and if L2 failed, a new client is not answered.
        asks_clients = one.needs and "L2" not in session.failed_checks
        has_server = session.server is not None or session.submission is None
        if result.status == PASSED and asks_clients and has_server:
            context = CheckContext(session, one.id, trial.timeline)
            try:
                failure = _failure_of_new_client(context)
            except OwnLimitReached as limit:
                result.status, result.message = ERROR, str(limit)
                return ""
            if failure is not None:
                late_failure = Failure(
                    "what was asked for came, but afterwards a new client was not served: "
                    f"{failure}",
                    failure.difference,
                )
                self._record_failure(result, context, late_failure)
        if (
            result.status == PASSED
            and session.server is not None
            and session.server.has_killed_keeper
        ):
            self._record_failure(result, trial, Failure(f"the server {session.server.death}"))
        if result.status in {FAILED, ERROR}:
            session.end()  # the next check begins with a new one
            with suppress(OwnLimitReached):
                if (
                    session.submission is None
                    and _failure_of_new_client(CheckContext(session, one.id)) is not None
                ):
                    return f"after {one.id}, the server did not answer any more"
        return ""


def _own_message(problem: Exception) -> str:
    """Return what kept the grader from carrying out a check."""
    if isinstance(problem, OwnLimitReached):
        return str(problem)
    kind = "" if isinstance(problem, CannotGrade) else f"{type(problem).__name__}: "
    return f"the grader itself failed: {kind}{problem}"


def _failure_of_new_client(trial: CheckContext) -> Failure | None:
    """Return the failure that a new client meets; None: it is served."""
    try:
        trial.connect("afterwards").ask(_PROBE)
    except Failure as failure:
        return failure
    finally:
        trial.close()
    return None


def _copy_outcome(result: Result, attempt: Result) -> None:
    result.status, result.message = attempt.status, attempt.message
    result.purpose, result.hint = attempt.purpose, attempt.hint
    result.evidence, result.applicable = attempt.evidence, attempt.applicable


def blank(
    checks: Sequence[Check], weights: dict[str, float], *, started_here: bool
) -> list[Result]:
    """Return results for checks that have not been carried out yet."""
    return [
        Result(
            one,
            SKIPPED,
            weights.get(one.id, one.weight),
            message=NOT_REACHED,
            applicable=started_here or not one.process,
        )
        for one in checks
    ]
