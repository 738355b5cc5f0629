"""Grading: checks are carried out, and their results are shown and saved as they come."""

import sys
from typing import Any

import click

from clients.address import format_socket_address
from echoserver.terminal import has_colours
from loadtest.check.formats import GRADE_FORMATS, text
from loadtest.check.leaderboard import figures
from loadtest.check.model import SKIPPED, Check, Report, Result
from loadtest.check.runner import NOT_REACHED, Runner, blank
from loadtest.check.submission.server import CannotGrade, NotStarted
from loadtest.check.trial import Session
from loadtest.errors import LoadError
from loadtest.machine.descriptors import allow_descriptors
from loadtest.output import EXIT_CLOSED_OUTPUT, complain, is_stream, show, write

EXIT_FAILED = 1

EXIT_NOT_GRADED = 2

_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow", "error": "red"}

_FEW = 32  # connections at a time of the checks that open no crowd


class Grading:
    """Shows and saves results as they come, and knows the exit code."""

    def __init__(self, files: dict[str, str], terminal_format: str) -> None:
        self._files = files
        """The formats of the files, by path."""
        self._terminal_format = terminal_format
        self._save_errors: dict[str, str] = {}
        self._report: Report | None = None
        self._output_error: OSError | None = None
        """The error after which nothing more can be shown."""

    def carry_out(
        self,
        session: Session,
        checks: list[Check],
        weights: dict[str, float],
        options: dict[str, Any],
    ) -> None:
        """Run the checks, and write the report."""
        name = (
            session.submission.name
            if session.submission
            else format_socket_address(session.address)
        )
        name = name.encode(errors="replace").decode()  # the shell may pass bytes that are not text
        results = blank(checks, weights, started_here=session.submission is not None)
        report = Report(name, options["expect"], session.seed, options["repeat"], results)
        self._report = report
        _allow_descriptors(session.clients if any(one.crowd for one in checks) else _FEW)
        if self._terminal_format == "text":
            self._show(f"{text.heading(report)}\n\n")
        self._save(report)
        Runner(session, checks, report, self._on_result, options["build"]).run()
        if "gradescope" in {*self._files.values(), self._terminal_format}:
            self._compare(session, report)
        self.finish()

    def finish(self) -> None:
        """Save and show the report so far."""
        if self._report is None:
            return
        self._save(self._report, last=True)
        if self._terminal_format == "text":
            reached = (one for one in self._report.results if one.message != NOT_REACHED)
            lines = [
                _coloured(line, SKIPPED) if line.startswith(":") else line
                for line in text.skipped(reached)
            ]
            self._show("\n".join([*lines, "", text.summary(self._report), ""]))
        else:
            self._show(GRADE_FORMATS[self._terminal_format].render(self._report))

    def _show(self, output: str) -> None:
        if self._output_error is None:  # the report can still be saved
            # Whether it is coloured is decided here, and not once more by click.
            self._output_error = show(
                lambda: click.echo(output, nl=False, color=has_colours(sys.stdout))
            )

    @property
    def exit_code(self) -> int:
        """The exit code of this process."""
        closed = isinstance(self._output_error, BrokenPipeError)  # the reader has seen enough
        if self._output_error is not None and not closed:
            self._save_errors["the report"] = self._output_error.strerror or str(self._output_error)
        for path, reason in self._save_errors.items():
            complain(f"echoload: cannot write {path}: {reason}")
        report = self._report
        if report is None or self._save_errors or report.of("error"):
            return EXIT_NOT_GRADED
        if any(
            GRADE_FORMATS[one].counts_as_graded
            for one in (*self._files.values(), self._terminal_format)
        ):
            return 0
        if not report.good:
            return EXIT_FAILED
        return EXIT_CLOSED_OUTPUT if closed else 0

    def _on_result(self, report: Report, result: Result) -> None:
        if self._terminal_format == "text" and result.status != SKIPPED:
            first, *rest = text.block(result)
            self._show("\n".join([_coloured(first, result.status), *rest, ""]))
        self._save(report)

    def _save(self, report: Report, *, last: bool = False) -> None:
        """Save the report after each result, so that it is not lost; to a pipe, only at the end."""
        for path, form in self._files.items():
            try:
                if not last and is_stream(path):
                    continue
                write(path, GRADE_FORMATS[form].render(report))
                self._save_errors.pop(path, None)
            except OSError as error:
                self._save_errors[path] = error.strerror or str(error)

    @staticmethod
    def _compare(session: Session, report: Report) -> None:
        """Measure the figures of the leaderboard; a server that does not answer has none."""
        passed_ids = {one.check.id for one in report.results if one.status == "passed"}
        if {"L1", "L2"} <= passed_ids:
            try:
                report.leaderboard = figures(session)
            except (NotStarted, CannotGrade, LoadError, OSError) as problem:
                complain(f"echoload: no leaderboard: {problem}")


def _coloured(line: str, status: str) -> str:
    """Return a line whose mark has the colour of a status, where colours are wanted."""
    mark, _, title = line.partition(" ")
    colours = has_colours(sys.stdout)
    return f"{click.style(mark, fg=_COLOURS[status]) if colours else mark} {title}"


def _allow_descriptors(clients: int) -> None:
    """Make room for the clients of the checks."""
    try:
        allow_descriptors(clients, "--clients")
    except LoadError as error:
        raise CannotGrade(str(error)) from None
