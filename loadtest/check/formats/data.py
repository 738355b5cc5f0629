"""For programs: JSON of our own, JUnit's XML, and TAP."""

import json

from loadtest.check.formats import text
from loadtest.check.model import ERROR, FAILED, PASSED, SKIPPED, Report, Result

SCHEMA = "echoload-check/1"


def as_json(report: Report) -> str:
    """Return everything, in a shape that stays; `SCHEMA` names it."""
    found = {
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
        found["leaderboard"] = report.leaderboard
    return json.dumps(found, indent=2) + "\n"


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
    from xml.etree import ElementTree as ET

    suite = ET.Element(
        "testsuite",
        name="echoload check",
        tests=str(len(report.results)),
        failures=str(len(report.of(FAILED))),
        errors=str(len(report.of(ERROR))),
        skipped=str(len(report.of(SKIPPED))),
        time=f"{report.seconds:.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("server", report.server),
        ("seed", report.seed),
        ("score", report.score),
        ("max_score", report.max_score),
    ):
        ET.SubElement(properties, "property", name=name, value=_xml(str(value)))
    for result in report.results:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=f"echoload.check.{result.check.group}",
            name=f"{result.check.id} {result.check.title}",
            time=f"{result.seconds:.3f}",
        )
        element = {FAILED: "failure", ERROR: "error", SKIPPED: "skipped"}.get(result.status)
        if element is not None:
            found = ET.SubElement(case, element, message=_xml(result.message))
            if result.status != SKIPPED:
                found.set("type", result.check.id)
                found.text = _xml("\n".join(text.details(result)))
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _xml(said: str) -> str:
    """Return a text without what XML 1.0 has no room for."""
    return "".join(
        c if c in "\t\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in said
    )


def as_tap(report: Report) -> str:
    """Return TAP version 14."""
    lines = ["TAP version 14", f"1..{len(report.results)}"]
    for number, result in enumerate(report.results, 1):
        title = f"{result.check.id} {result.check.title}".replace("\\", "\\\\").replace("#", "\\#")
        if result.status == PASSED:
            lines.append(f"ok {number} - {title}")
        elif result.status == SKIPPED:
            fine = "ok" if not result.applicable else "not ok"
            lines.append(f"{fine} {number} - {title} # SKIP {result.message}")
        else:
            lines.append(f"not ok {number} - {title}")
            lines += _yaml(result)
    return "\n".join(lines) + "\n"


def _yaml(result: Result) -> list[str]:
    # Strings as JSON has them are YAML, whatever is in them.
    found = [f"  message: {json.dumps(result.message)}", "  severity: fail"]
    if result.hint:
        found.append(f"  hint: {json.dumps(result.hint)}")
    for name, lines in result.evidence.as_dict().items():
        if isinstance(lines, list):
            found += [f"  {name}:", *(f"    - {json.dumps(one)}" for one in lines)]
    if difference := result.evidence.difference:
        found += ["  difference:", f"    offset: {difference.offset}"]
        found += ["    owed:", *(f"      - {json.dumps(row)}" for row in difference.expected)]
        found += ["    came:", *(f"      - {json.dumps(row)}" for row in difference.received)]
    return ["  ---", *found, "  ..."]
