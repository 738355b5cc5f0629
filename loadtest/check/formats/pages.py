"""Reports as Markdown for a pull request, and as a page for the browser."""

from pathlib import Path

from loadtest.check.formats import text
from loadtest.check.model import ERROR, FAILED, PASSED, SKIPPED, Report
from loadtest.templates import page_template

_WORDS = {PASSED: "passed", FAILED: "**failed**", SKIPPED: "skipped", ERROR: "**grader failed**"}


def markdown(report: Report) -> str:
    """Return a report as a table, with details of the checks that failed."""
    lines = [f"### {text.summary(report)}", "", f"`{_code(text.heading(report))}`", ""]
    lines += ["| check | | result | points |", "|---|---|---|---:|"]
    for result in report.results:
        points = f"{result.score:g} of {result.max_score:g}" if result.applicable else ""
        why = f": {_cell(result.message)}" if result.status == SKIPPED else ""
        lines.append(
            f"| {result.check.id} | {_cell(result.check.title)} | {_WORDS[result.status]}{why} | "
            f"{points}{' (bonus)' if result.check.bonus else ''} |"
        )
    for result in report.results:
        if details := text.details(result):
            title = _html(f"{result.check.id} {result.check.title}")
            lines += ["", f"<details><summary>{title}</summary>", "", "```text"]
            lines += [one.replace("```", "'''") for one in details]
            lines += ["```", "", "</details>"]
    return "\n".join(lines) + "\n"


def _code(content: str) -> str:
    return content.replace("`", "'")


def _cell(content: str) -> str:
    return _html(content).replace("|", "\\|").replace("\n", " ")


def _html(content: str) -> str:
    return content.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def html(report: Report) -> str:
    """Return a report as one self-contained page."""
    groups: dict[str, list[object]] = {}
    for result in report.results:
        groups.setdefault(result.check.group, []).append(result)
    return page_template(Path(__file__).with_name("grade.html.jinja")).render(
        report=report,
        groups=groups,
        heading=text.heading(report),
        summary=text.summary(report),
        details=text.details,
    )
