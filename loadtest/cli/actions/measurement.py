"""From a measurement to tables, files and an exit code."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from clients.content import WRONG
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
    refuse_one_place_for_two,
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
    """What is measured, and what becomes of it."""

    rounds: int
    seconds: float | None
    """Of each round; None: it is not known."""
    pinning: Pinning
    plan: dict[str, Any]
    """What was asked for, as it goes into the document."""
    files: dict[str, str]
    """Where to save the outcome, by format."""
    quiet: bool = False
    reference: str | None = None
    objectives: tuple[Objective, ...] = ()
    baseline: list[Row] | None = None
    most_regression: float = 0.0
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What could not be measured, and why: a sentence each."""

    def carry_out(self, go: Callable[[RoundProgress], None]) -> int:
        """Measure, save and show what there is (after Ctrl-C, too), and return the exit code."""
        treat_all_as_ctrl_c()
        cpus = sorted(self.pinning.server), sorted(self.pinning.client)
        surroundings = environment.describe(cpus)
        interrupted = False
        try:
            with RoundProgress(self.rounds, self.seconds, quiet=self.quiet) as progress:
                go(progress)
        except KeyboardInterrupt:
            interrupted = True
        except (LoadError, EchoServerError, OSError) as error:
            self.failures.append(str(error))
        done = [result for result in self.results if result.rounds]
        verdict, closed = Verdict(), False
        if done:
            if interrupted:
                self.notes.insert(0, self._interrupted(done))
            found = document(done, surroundings, self.plan, self.notes, self.reference)
            found["interrupted"] = interrupted
            verdict = self._judged(found["results"])
            self.failures += save(found, {k: v for k, v in self.files.items() if k != "junit"})
        self._save_cases([result.as_json() for result in done], interrupted=interrupted)
        if done:
            closed = self._show(found)
        for sentence in self.failures:
            complain(f"echoload: {sentence}")
        if interrupted:
            said = "what was measured until then was counted" if done else "nothing was measured"
            complain(f"interrupted: {said}")
            return EXIT_INTERRUPTED
        code = self._exit_code(done, verdict)
        return code or (EXIT_CLOSED_OUTPUT if closed else 0)

    def leave_out(self, targets: Sequence[object]) -> None:
        """Tell of targets that could not be measured: under the table, and by the exit code."""
        for one in targets:
            self.failures.append(str(one))
            self.notes.append(f"{one}.")

    def _exit_code(self, done: list[Result], verdict: Verdict) -> int:
        """Say what did not hold, and return what this process ends with."""
        if self.failures:
            return EXIT_COULD_NOT_RUN
        failed = [result for result in done if result.wrong or result.failure]
        for result in failed:
            wrong = "a reply was wrong" if result.wrong else ""
            because = "; ".join(filter(None, (wrong, result.failure)))
            complain(f"echoload: {label(result.as_json())}: {because}")
        for sentence in verdict.broken:
            complain(f"echoload: {sentence}")
        for sentence in verdict.unsure:
            complain(f"echoload: inconclusive: {sentence}")
        if failed:
            return EXIT_BAD_REPLY
        for sentence in verdict.held:
            complain(f"echoload: {sentence}")
        return (
            EXIT_OBJECTIVE_MISSED if verdict.broken else EXIT_INCONCLUSIVE if verdict.unsure else 0
        )

    def _show(self, found: Document) -> bool:
        """Show the tables; tell whether standard output was closed meanwhile."""
        problem = show_table(found, self.files)
        closed = isinstance(problem, BrokenPipeError)  # the reader has seen enough
        if problem is not None and not closed:
            self.failures.append(f"cannot write the table: {problem.strerror}")
        return closed

    def _interrupted(self, done: list[Result]) -> str:
        """Return what a reader must know of a measurement that did not come to its end."""
        short = {
            result.target: f"{one.load.seconds:.1f}"
            for result in done
            for one in result.rounds
            if one.interrupted
        }
        if self.rounds == 1:
            asked = f" of {self.seconds:g}" if self.seconds else ""
            return (
                f"INTERRUPTED: after {''.join(short.values()) or 0}{asked} s, of which this tells."
            )
        whole = sum(not one.interrupted for result in done for one in result.rounds)
        said = f"INTERRUPTED: after {whole} of {self.rounds} rounds, of which this tells."
        for target, seconds in short.items():
            said += f" The only round of {target} was cut short, after {seconds} s."
        return said

    def _save_cases(self, rows: list[Row], *, interrupted: bool) -> None:
        """Save test cases, where they are wanted: where nothing could be measured, too."""
        path = self.files.get("junit")
        if path is None:
            return
        cases = [case for row in rows for case in cases_of(row, self.objectives)]
        if self.baseline is not None and rows:
            before = check_regressions(rows, self.baseline, self.most_regression)
            cases.append(_case("echoload", "no worse than the baseline", "regression", before))
        trouble = [*self.failures, *(["interrupted"] if interrupted else [])]
        cases += [Case("echoload", "it can be measured", ERROR, one, "error") for one in trouble]
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

    def _judged(self, rows: list[Row]) -> Verdict:
        verdict = check_objectives(rows, self.objectives)
        if self.baseline is not None:
            before = check_regressions(rows, self.baseline, self.most_regression)
            verdict = Verdict(
                verdict.broken + before.broken,
                verdict.unsure + before.unsure,
                verdict.held + before.held,
            )
        return verdict


def show_table(found: Document, files: dict[str, str]) -> OSError | None:
    """Show a document: on standard output, or where a format goes there, on standard error."""
    if any(map(is_standard_output, files.values())):
        with suppress(OSError):
            text.show(found, sys.stderr)
        return None
    return show(lambda: text.show(found))


def save(found: Document, files: dict[str, str]) -> list[str]:
    """Save a document in each of the formats that a file is named for; return what went wrong."""
    wrong = []
    for form, path in files.items():
        try:
            write(path, render(found, form))
        except OSError as error:
            wrong.append(f"--{form}: cannot write {path}: {error.strerror}")
    return wrong


def cases_of(row: Row, objectives: Sequence[Objective]) -> list[Case]:
    """Return a result's test cases: its replies, and each objective."""
    where = f"echoload.{label(row)}"
    wrong = sum(row["errors"].get(kind, 0) for kind in WRONG)
    said = f"{wrong} wrong" if wrong else "" if row["verified"] else "nothing was verified"
    first = "\n".join(f"{kind}: {what}" for kind, what in row["first_errors"].items())
    made = [Case(where, "every reply is right", FAILURE if said else None, said, "replies", first)]
    if ended := row["ended_early"]:
        said = f"in round {ended[0]['round']}, {ended[0]['because']}"
        made.append(Case(where, "it came to its end", FAILURE, said, "end", said))
    for objective in objectives:
        verdict = judge(row, objective)
        made.append(_case(where, objective.text, objective.figure, verdict))
    return made


def _case(where: str, name: str, kind: str, verdict: Verdict) -> Case:
    outcome = FAILURE if verdict.broken else SKIPPED if verdict.unsure else None
    said = "\n".join((*verdict.broken, *verdict.unsure))
    return Case(where, name, outcome, said, kind, said)


def render(found: Document, form: str) -> str:
    """Return a document in a format, one of `SAVE_FORMATS` that tells of the figures."""
    if form == "csv":
        return as_csv(found)
    if form == "markdown":
        return markdown(found)
    if form == "html":
        return page([found])
    if form == "hgrm":
        return hgrm(found)
    return as_text(found)


def chosen_files(options: dict[str, Any]) -> dict[str, str]:
    """Take the files to save to from options as typed; complain now, not after the measurement."""
    named = {form: options.pop(f"{form}_file", None) for form in SAVE_FORMATS}
    files = {form: path for form, path in named.items() if path is not None}
    refuse_one_place_for_two((f"--{form}", path) for form, path in files.items())
    for form, path in files.items():
        refuse_unwritable(path, f"--{form}")
    return files
