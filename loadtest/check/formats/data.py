"""Reports for programs: JSON of our own, JUnit's XML, and TAP."""

import json

from loadtest import junit
from loadtest.check.formats import text
from loadtest.check.model import ERROR, FAILED, PASSED, SKIPPED, Report, Result

SCHEMA = "echoload-check/1"


def as_json(report: Report) -> str:
    """Return a report in a stable JSON format, named by `SCHEMA`."""
    document = {
        "schema": SCHEMA,
        "server": report.server,
        "expect": report.expect,
        "seed": report.seed,
        "repeat": report.repeat,
        "complete": report.complete,
        "seconds": round(report.seconds, 3),
        "score": report.score,
        "max_score": report.max_score,
        "checks": [_check(result) for result in report.results],
    }
    if report.leaderboard:
        document["leaderboard"] = report.leaderboard
    return json.dumps(document, indent=2) + "\n"


def _check(result: Result) -> dict[str, object]:
    return {
        "id": result.check.id,
        "title": result.check.title,
        "status": result.status,
        "score": result.score,
        "max_score": result.max_score,
        "bonus": result.check.bonus,
        "message": result.message,
        "hint": result.hint,
        "evidence": result.evidence.as_dict(),
        "seconds": round(result.seconds, 3),
    }


def as_junit(report: Report) -> str:
    """Return JUnit's XML, as CI systems read it: a test case for each check."""
    outcomes = {FAILED: junit.FAILURE, ERROR: junit.ERROR, SKIPPED: junit.SKIPPED}
    cases = [
        junit.Case(
            classname=f"echoload.check.{result.check.group}",
            name=f"{result.check.id} {result.check.title}",
            outcome=outcomes.get(result.status),
            message=result.message,
            kind=result.check.id,
            details="\n".join(text.details(result)),
            seconds=result.seconds,
        )
        for result in report.results
    ]
    properties = {
        "server": report.server,
        "seed": report.seed,
        "score": report.score,
        "max_score": report.max_score,
    }
    return junit.as_junit("echoload check", cases, properties, report.seconds)


def as_tap(report: Report) -> str:
    """Return TAP version 14."""
    lines = ["TAP version 14", f"1..{len(report.results)}"]
    for number, result in enumerate(report.results, 1):
        title = f"{result.check.id} {result.check.title}".replace("\\", "\\\\").replace("#", "\\#")
        if result.status == PASSED:
            lines.append(f"ok {number} - {title}")
        elif result.status == SKIPPED:
            status = "ok" if not result.applicable else "not ok"
            lines.append(f"{status} {number} - {title} # SKIP {result.message}")
        else:
            lines.append(f"not ok {number} - {title}")
            lines += _yaml(result)
    return "\n".join(lines) + "\n"


def _yaml(result: Result) -> list[str]:
    # Strings as JSON has them are YAML, whatever is in them.
    block = [f"  message: {json.dumps(result.message)}", "  severity: fail"]
    if result.hint:
        block.append(f"  hint: {json.dumps(result.hint)}")
    for name, lines in result.evidence.as_dict().items():
        if isinstance(lines, list):
            block += [f"  {name}:", *(f"    - {json.dumps(one)}" for one in lines)]
    if difference := result.evidence.difference:
        block += ["  difference:", f"    offset: {difference.offset}"]
        block += ["    owed:", *(f"      - {json.dumps(row)}" for row in difference.expected)]
        block += ["    came:", *(f"      - {json.dumps(row)}" for row in difference.received)]
    return ["  ---", *block, "  ..."]
