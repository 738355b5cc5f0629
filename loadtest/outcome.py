"""From a measurement to tables, files and an exit code."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from echoserver.errors import EchoServerError
from loadtest import environment
from loadtest.options import usage
from loadtest.pinning import Pinning
from loadtest.progress import RoundProgress
from loadtest.results import Document, Result, as_text, document, write
from loadtest.thresholds import Objective, Verdict, check_objectives, check_regressions
from loadtest.workers import LoadError

EXIT_COULD_NOT_RUN = 1
EXIT_BROKEN = 3
EXIT_WRONG = 4
EXIT_UNSURE = 5
EXIT_INTERRUPTED = 128 + signal.SIGINT

FORMATS = ("json", "csv", "markdown", "html", "hgrm")


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
    baseline: Document | None = None
    most_regression: float = 0.0
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def carry_out(self, go: Callable[[RoundProgress], None]) -> int:
        """Measure, show and save what there is (after Ctrl-C, too), and return the exit code."""
        # Whoever ends us by SIGTERM wants what Ctrl-C does: the table so far, and nothing left.
        signal.signal(signal.SIGTERM, interrupt)
        cpus = sorted(self.pinning.server), sorted(self.pinning.client)
        surroundings = environment.describe(cpus)
        interrupted = False
        failure = ""
        try:
            with RoundProgress(self.rounds, self.seconds, quiet=self.quiet) as progress:
                go(progress)
        except KeyboardInterrupt:
            interrupted = True
        except (LoadError, EchoServerError, OSError) as error:
            failure = str(error)
        done = [result for result in self.results if result.rounds]
        verdict = Verdict()
        if done:
            found = document(done, surroundings, self.plan, self.notes, self.reference)
            from loadtest.report import text

            text.show(found)
            not_saved = save(found, self.files)
            failure = failure or not_saved
            verdict = self._judged(found)
        if interrupted:
            print("interrupted: only the rounds so far were counted", file=sys.stderr)
            return EXIT_INTERRUPTED
        if failure:
            print(f"echoload: {failure}", file=sys.stderr)
            return EXIT_COULD_NOT_RUN
        if any(result.wrong or not result.verified for result in done):
            return EXIT_WRONG
        for sentence in verdict.broken:
            print(f"echoload: {sentence}", file=sys.stderr)
        for sentence in verdict.unsure:
            print(f"echoload: inconclusive: {sentence}", file=sys.stderr)
        return EXIT_BROKEN if verdict.broken else EXIT_UNSURE if verdict.unsure else 0

    def _judged(self, found: Document) -> Verdict:
        verdict = check_objectives(found, self.objectives)
        if self.baseline is not None:
            before = check_regressions(found, self.baseline, self.most_regression)
            verdict = Verdict(verdict.broken + before.broken, verdict.unsure + before.unsure)
        return verdict


def save(found: Document, files: dict[str, str]) -> str:
    """Save a document in each of the formats that a file is named for; return what went wrong."""
    for form, path in files.items():
        try:
            write(path, render(found, form))
        except OSError as error:
            return f"--{form}: cannot write {path}: {error.strerror}"
    return ""


def render(found: Document, form: str) -> str:
    """Return a document in a format; a key of `FORMATS`."""
    if form == "csv":
        from loadtest.report.spreadsheet import as_csv

        return as_csv(found)
    if form == "markdown":
        from loadtest.report.markdown import markdown

        return markdown(found)
    if form == "html":
        from loadtest.report.page import page

        return page([found])
    if form == "hgrm":
        from loadtest.report.hgrm import hgrm

        return hgrm(found)
    return as_text(found)


def chosen_files(options: dict[str, Any]) -> dict[str, str]:
    """Take the files to save to from options as typed; complain now, not after the measurement."""
    files = {form: options.pop(f"{form}_file") for form in FORMATS}
    for form, path in files.items():
        if path is not None:
            refuse_unwritable(path, f"--{form}")
    return {form: path for form, path in files.items() if path is not None}


def refuse_unwritable(path: str, option: str) -> None:
    """Complain about a file that cannot be written."""
    target = Path(os.path.realpath(path))
    try:
        exists = target.exists()
    except OSError as error:
        usage(f"{option}: cannot write {path}: {error.strerror}")
    if exists and not target.is_file() and not target.is_dir():
        return  # a pipe or a device
    if target.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
        usage(f"{option}: cannot write {path}: its folder does not exist or cannot be written to")


def interrupt(_number: int, _frame: Any) -> NoReturn:
    """Handle a signal as Ctrl-C is."""
    raise KeyboardInterrupt
