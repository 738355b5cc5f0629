"""Reports for the terminal: a line for each check, with details of those that failed."""

import textwrap
from collections.abc import Iterable

from loadtest.check.model import ERROR, FAILED, PASSED, SKIPPED, Report, Result

_MARKS = {PASSED: ":)", FAILED: ":(", SKIPPED: ":|", ERROR: ":/"}
_WIDTH = 100
_INDENT = "     "
_GROUPED = 3  # checks that were skipped for the same reason are one line


def line(result: Result) -> str:
    """Return the one line for a check."""
    why = f" ({result.message})" if result.status == SKIPPED else ""
    return f"{_MARKS[result.status]} {result.check.id} {result.check.title}{why}"


def details(result: Result) -> list[str]:
    """Return the details of a check that failed."""
    if result.status not in {FAILED, ERROR}:
        return []
    evidence = result.evidence
    lines = _wrap(_sentence(result.message))
    if result.status == ERROR:
        return lines
    lines += _wrap(result.purpose, "why it matters: ")
    lines += _wrap(result.hint, "where to look: ")
    if difference := evidence.difference:
        lines.append(f"the first difference is at byte {difference.offset:,}:")
        lines += [f"  owed  {row}" for row in difference.expected]
        lines += [f"  came  {row}" for row in difference.received]
    if evidence.timeline:
        lines += ["what happened:", *(f"  {event}" for event in evidence.timeline)]
    if evidence.server:
        lines += ["the server then:", *(f"  {one}" for one in evidence.server)]
    if evidence.output:
        lines += ["what it printed last:", *(f"  | {one}" for one in evidence.output)]
    return lines


def block(result: Result) -> list[str]:
    """Return the line of a check, and its details."""
    return [line(result), *(_INDENT + one for one in details(result))]


def skipped(results: Iterable[Result]) -> list[str]:
    """Return the lines for checks that were skipped: one for each reason that several share."""
    by_reason: dict[str, list[Result]] = {}
    for result in results:
        if result.status == SKIPPED:
            by_reason.setdefault(result.message, []).append(result)
    lines: list[str] = []
    for reason, group in by_reason.items():
        if len(group) < _GROUPED:
            lines += map(line, group)
            continue
        ids = ", ".join(result.check.id for result in group)
        text = f"{_MARKS[SKIPPED]} {len(group)} checks ({reason}): {ids}"
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent=_INDENT)
    return lines


def summary(report: Report) -> str:
    """Return the closing line."""
    counts = [
        f"{len(results)} {status}"
        for status in (PASSED, FAILED, SKIPPED, ERROR)
        if (results := report.of(status)) or status == PASSED
    ]
    score = f"{report.score - report.bonus:g} of {report.max_score:g} points"
    score += f", and {report.bonus:g} as a bonus" if report.bonus else ""
    times = f", {report.repeat} times" if report.repeat > 1 else ""
    return f"{', '.join(counts)}: {score} (seed {report.seed}{times}, {report.seconds:.1f} s)"


def heading(report: Report) -> str:
    """Return the opening line."""
    return f"{report.server} (expected: {report.expect})"


def as_text(report: Report) -> str:
    """Return the whole report as text."""
    lines = [heading(report), ""]
    for result in report.results:
        if result.status != SKIPPED:
            lines += block(result)
    lines += skipped(report.results)
    return "\n".join([*lines, "", summary(report)]) + "\n"


def _wrap(text: str, label: str = "") -> list[str]:
    return textwrap.wrap(
        label + text, _WIDTH - len(_INDENT), subsequent_indent="  " if label else ""
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
