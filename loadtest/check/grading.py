"""Grading: checks are carried out, and what they find is shown and saved as it comes."""

import sys
from typing import Any

import click

from clients.address import format_address
from echoserver.terminal import has_colours
from loadtest.check.formats import GRADE_FORMATS, text
from loadtest.check.leaderboard import figures
from loadtest.check.model import Check, Report, Result
from loadtest.check.runner import Runner, blank
from loadtest.check.submission.server import CannotGrade, NotStarted
from loadtest.check.trial import Session
from loadtest.errors import LoadError
from loadtest.machine.descriptors import allow_descriptors
from loadtest.output import EXIT_CLOSED_OUTPUT, complain, is_stream, show, write

EXIT_FAILED = 1

EXIT_NOT_GRADED = 2

_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow", "error": "red"}


class Grading:
    """Shows and saves results as they come, and knows the exit code."""

    def __init__(self, files: dict[str, str], shown: str) -> None:
        self._files = files
        """By path: the format."""
        self._shown = shown
        self._trouble: dict[str, str] = {}
        self._report: Report | None = None
        self._unshown: OSError | None = None
        """Why nothing more can be shown."""

    def carry_out(
        self,
        session: Session,
        chosen: list[Check],
        weights: dict[str, float],
        options: dict[str, Any],
    ) -> None:
        """Run the checks, and write the report."""
        name = session.submission.name if session.submission else format_address(*session.address)
        name = name.encode(errors="replace").decode()  # whatever the shell let through
        results = blank(chosen, weights, started_here=session.submission is not None)
        report = Report(name, options["expect"], session.seed, options["repeat"], results)
        self._report = report
        _allow_descriptors(session.clients)
        if self._shown == "text":
            self._show(f"{text.heading(report)}\n\n")
        self._save(report)
        Runner(session, chosen, report, self._found, options["build"]).run()
        if "gradescope" in {*self._files.values(), self._shown}:
            self._compare(session, report)
        self.finish()

    def finish(self) -> None:
        """Save and show what there is."""
        if self._report is None:
            return
        self._save(self._report, last=True)
        if self._shown == "text":
            self._show(f"\n{text.summary(self._report)}\n")
        else:
            self._show(GRADE_FORMATS[self._shown].render(self._report))

    def _show(self, said: str) -> None:
        if self._unshown is None:  # it can still be saved
            # Whether it is coloured is decided here, and not once more by click.
            self._unshown = show(lambda: click.echo(said, nl=False, color=has_colours(sys.stdout)))

    @property
    def exit_code(self) -> int:
        """What this process ends with."""
        closed = isinstance(self._unshown, BrokenPipeError)  # the reader has seen enough
        if self._unshown is not None and not closed:
            self._trouble["what was found"] = self._unshown.strerror or str(self._unshown)
        for path, reason in self._trouble.items():
            complain(f"echoload: cannot write {path}: {reason}")
        report = self._report
        if report is None or self._trouble or report.of("error"):
            return EXIT_NOT_GRADED
        if any(GRADE_FORMATS[one].counts_as_graded for one in (*self._files.values(), self._shown)):
            return 0
        if not report.good:
            return EXIT_FAILED
        return EXIT_CLOSED_OUTPUT if closed else 0

    def _found(self, report: Report, result: Result) -> None:
        if self._shown == "text":
            first, *rest = text.block(result)
            mark, _, title = first.partition(" ")
            colours = has_colours(sys.stdout)
            shown = click.style(mark, fg=_COLOURS[result.status]) if colours else mark
            self._show("\n".join([f"{shown} {title}", *rest, ""]))
        self._save(report)

    def _save(self, report: Report, *, last: bool = False) -> None:
        """Save what was found so far: again and again, lest it be lost; to a pipe, at the end."""
        for path, form in self._files.items():
            try:
                if not last and is_stream(path):
                    continue
                write(path, GRADE_FORMATS[form].render(report))
                self._trouble.pop(path, None)
            except OSError as error:
                self._trouble[path] = error.strerror or str(error)

    @staticmethod
    def _compare(session: Session, report: Report) -> None:
        """Measure what the leaderboard shows; without a server that answers, there is nothing."""
        passed = {one.check.id for one in report.results if one.status == "passed"}
        if {"L1", "L2"} <= passed:
            try:
                report.leaderboard = figures(session)
            except (NotStarted, CannotGrade, LoadError, OSError) as problem:
                complain(f"echoload: no leaderboard: {problem}")


def _allow_descriptors(clients: int) -> None:
    """Make room for the clients of the checks."""
    try:
        allow_descriptors(clients)
    except LoadError as error:
        raise CannotGrade(str(error)) from None
