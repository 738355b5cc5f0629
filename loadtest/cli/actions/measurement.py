"""Runs a measurement, and turns it into tables, files and an exit code."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from clients.content import WRONG
from clients.own_limits import own_limit
from echoserver.errors import EchoServerError
from loadtest.cli.actions.progress import RoundProgress
from loadtest.errors import LoadError
from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
from loadtest.junit import ERROR, FAILURE, SKIPPED, Case, as_junit
from loadtest.machine import environment
from loadtest.machine.pinning import Pinning
from loadtest.output import (
    EXIT_CLOSED_OUTPUT,
    complain,
    is_standard_output,
    refuse_same_destination,
    refuse_unwritable,
    show,
    write,
)
from loadtest.report import text
from loadtest.report.hgrm import hgrm
from loadtest.report.markdown import markdown
from loadtest.report.page import page
from loadtest.report.spreadsheet import as_csv
from loadtest.results.document import as_text, document, label
from loadtest.results.objectives import Objective
from loadtest.results.result import Result
from loadtest.results.schema import Document, Row
from loadtest.results.verdicts import Verdict, check_objectives, check_regressions, judge

EXIT_COULD_NOT_RUN = 1
EXIT_OBJECTIVE_MISSED = 3
EXIT_BAD_REPLY = 4
EXIT_INCONCLUSIVE = 5

SAVE_FORMATS = ("json", "csv", "markdown", "html", "hgrm", "junit")


@dataclass(slots=True)
class Measurement:
    """A measurement: its plan, its results, and where they are saved."""

    rounds: int
    seconds: float | None
    """The duration of each round; None: it is not known."""
    pinning: Pinning
    plan: dict[str, Any]
    """The options of the measurement, as they go into the document."""
    files: dict[str, str]
    """The files in which to save the document, by format."""
    quiet: bool = False
    reference: str | None = None
    objectives: tuple[Objective, ...] = ()
    baseline: list[Row] | None = None
    most_regression: float = 0.0
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """A sentence for each target that could not be measured, with the reason."""

    def carry_out(self, go: Callable[[RoundProgress], None]) -> int:
        """Measure, save and show the results (even after Ctrl-C), and return the exit code."""
        treat_all_as_ctrl_c()
        cpus = sorted(self.pinning.server), sorted(self.pinning.client)
        environment_ = environment.describe(cpus)
        interrupted = False
        try:
            with RoundProgress(self.rounds, self.seconds, quiet=self.quiet) as progress:
                go(progress)
        except KeyboardInterrupt:
            interrupted = True
        except (LoadError, EchoServerError, OSError) as error:
            self.failures.append(str(error))
        measured_results = [result for result in self.results if result.rounds]
        verdict, is_closed = Verdict(), False
        if measured_results:
            if interrupted:
                self.notes.insert(0, self._interruption_note(measured_results))
            document_ = document(
                measured_results, environment_, self.plan, self.notes, self.reference
            )
            document_["interrupted"] = interrupted
            verdict = self._judge_rows(document_["results"])
            self.failures += save(document_, {k: v for k, v in self.files.items() if k != "junit"})
        self._save_cases([result.as_json() for result in measured_results], interrupted=interrupted)
        if measured_results:
            is_closed = self._show(document_)
        for sentence in self.failures:
            complain(f"echoload: {sentence}")
        if interrupted:
            extent = (
                "what was measured until then was counted"
                if measured_results
                else "nothing was measured"
            )
            complain(f"interrupted: {extent}")
            return EXIT_INTERRUPTED
        code = self._exit_code(measured_results, verdict)
        return code or (EXIT_CLOSED_OUTPUT if is_closed else 0)

    def leave_out(self, targets: Sequence[object]) -> None:
        """Report targets that could not be measured: under the table, and by the exit code."""
        for one in targets:
            self.failures.append(str(one))
            self.notes.append(f"{one}.")

    def _exit_code(self, results: list[Result], verdict: Verdict) -> int:
        """Print what did not hold, and return the exit code."""
        own_limits = [
            f"{label(result.as_json())}: {count} connections were not made: {missing}"
            for result in results
            for kind, count in result.errors.items()
            if (missing := own_limit(kind))
        ]
        for sentence in own_limits:
            complain(f"echoload: {sentence}")
        if self.failures or own_limits:
            return EXIT_COULD_NOT_RUN
        bad_results = [result for result in results if result.wrong or result.failure]
        for result in bad_results:
            wrong = "a reply was wrong" if result.wrong else ""
            reason = "; ".join(filter(None, (wrong, result.failure)))
            complain(f"echoload: {label(result.as_json())}: {reason}")
        for sentence in verdict.violations:
            complain(f"echoload: {sentence}")
        for sentence in verdict.doubts:
            complain(f"echoload: inconclusive: {sentence}")
        if bad_results:
            return EXIT_BAD_REPLY
        for sentence in verdict.confirmations:
            complain(f"echoload: {sentence}")
        return (
            EXIT_OBJECTIVE_MISSED
            if verdict.violations
            else EXIT_INCONCLUSIVE
            if verdict.doubts
            else 0
        )

    def _show(self, document_: Document) -> bool:
        """Show the tables; tell whether standard output was closed meanwhile."""
        problem = show_table(document_, self.files)
        closed = isinstance(problem, BrokenPipeError)  # the reader has seen enough
        if problem is not None and not closed:
            self.failures.append(f"cannot write the table: {problem.strerror}")
        return closed

    def _interruption_note(self, results: list[Result]) -> str:
        """Return the note on a measurement that was interrupted."""
        seconds_by_target = {
            result.target: f"{one.load.seconds:.1f}"
            for result in results
            for one in result.rounds
            if one.interrupted
        }
        if self.rounds == 1:
            total = f" of {self.seconds:g}" if self.seconds else ""
            seconds = "".join(seconds_by_target.values()) or "0"
            return f"INTERRUPTED: after {seconds}{total} s, of which this tells."
        complete_rounds = sum(not one.interrupted for result in results for one in result.rounds)
        note = f"INTERRUPTED: after {complete_rounds} of {self.rounds} rounds, of which this tells."
        for target, seconds in seconds_by_target.items():
            note += f" The only round of {target} was cut short, after {seconds} s."
        return note

    def _save_cases(self, rows: list[Row], *, interrupted: bool) -> None:
        """Save the test cases if --junit names a file, even if nothing could be measured."""
        path = self.files.get("junit")
        if path is None:
            return
        cases = [case for row in rows for case in cases_of(row, self.objectives)]
        if self.baseline is not None and rows:
            verdict = check_regressions(rows, self.baseline, self.most_regression)
            cases.append(_case("echoload", "no worse than the baseline", "regression", verdict))
        problems = [*self.failures, *(["interrupted"] if interrupted else [])]
        cases += [Case("echoload", "it can be measured", ERROR, one, "error") for one in problems]
        properties = {
            "rounds": self.plan.get("rounds"),
            "objectives": ",".join(one.text for one in self.objectives),
            "interrupted": interrupted,
        }
        seconds = sum(one.load.seconds for result in self.results for one in result.rounds)
        try:
            write(path, as_junit("echoload", cases, properties, seconds))
        except OSError as error:
            self.failures.append(f"--junit: cannot write {path}: {error.strerror}")

    def _judge_rows(self, rows: list[Row]) -> Verdict:
        verdict = check_objectives(rows, self.objectives)
        if self.baseline is not None:
            baseline_verdict = check_regressions(rows, self.baseline, self.most_regression)
            verdict = Verdict(
                verdict.violations + baseline_verdict.violations,
                verdict.doubts + baseline_verdict.doubts,
                verdict.confirmations + baseline_verdict.confirmations,
            )
        return verdict


def show_table(document_: Document, files: dict[str, str]) -> OSError | None:
    """Show a document on standard output; on standard error if a format goes to standard output."""
    if any(map(is_standard_output, files.values())):
        with suppress(OSError):
            text.show(document_, sys.stderr)
        return None
    return show(lambda: text.show(document_))


def save(document_: Document, files: dict[str, str]) -> list[str]:
    """Save a document in each of the formats for which a file is named; return the failures."""
    failures = []
    for form, path in files.items():
        try:
            write(path, render(document_, form))
        except OSError as error:
            failures.append(f"--{form}: cannot write {path}: {error.strerror}")
    return failures


def cases_of(row: Row, objectives: Sequence[Objective]) -> list[Case]:
    """Return a result's test cases: its replies, and each objective."""
    classname = f"echoload.{label(row)}"
    wrong_replies = sum(row["errors"].get(kind, 0) for kind in WRONG)
    message = (
        f"{wrong_replies} wrong"
        if wrong_replies
        else ""
        if row["verified"]
        else "nothing was verified"
    )
    first = "\n".join(f"{kind}: {error}" for kind, error in row["first_errors"].items())
    cases = [
        Case(
            classname,
            "every reply is right",
            FAILURE if message else None,
            message,
            "replies",
            first,
        )
    ]
    if early_ends := row["ended_early"]:
        message = f"in round {early_ends[0]['round']}, {early_ends[0]['because']}"
        cases.append(Case(classname, "it came to its end", FAILURE, message, "end", message))
    for objective in objectives:
        verdict = judge(row, objective)
        cases.append(_case(classname, objective.text, objective.figure, verdict))
    return cases


def _case(classname: str, name: str, kind: str, verdict: Verdict) -> Case:
    outcome = FAILURE if verdict.violations else SKIPPED if verdict.doubts else None
    message = "\n".join((*verdict.violations, *verdict.doubts))
    return Case(classname, name, outcome, message, kind, message)


def render(document_: Document, form: str) -> str:
    """Return a document in one of the `SAVE_FORMATS` other than ``junit``."""
    if form == "csv":
        return as_csv(document_)
    if form == "markdown":
        return markdown(document_)
    if form == "html":
        return page([document_])
    if form == "hgrm":
        return hgrm(document_)
    return as_text(document_)


def take_output_files(options: dict[str, Any]) -> dict[str, str]:
    """Take the output files from the options; reject wrong ones now, not after the measurement."""
    paths = {form: options.pop(f"{form}_file", None) for form in SAVE_FORMATS}
    files = {form: path for form, path in paths.items() if path is not None}
    refuse_same_destination((f"--{form}", path) for form, path in files.items())
    for form, path in files.items():
        refuse_unwritable(path, f"--{form}")
    return files
