"""Reports for the hosts that grade: Gradescope, Classroom 50 and Autolab."""

import datetime as dt
import json
import os

from loadtest.check.formats import text
from loadtest.check.model import GROUPS, PASSED, SKIPPED, Report, Result

# What Classroom 50's runner puts into the environment, by the field that it becomes.
CLASSROOM50_ENVIRONMENT = {
    "classroom": "CLASSROOM",
    "assignment": "ASSIGNMENT",
    "submission": "SUBMISSION_TAG",
    "commit": "COMMIT_URL",
    "release": "RELEASE_URL",
}


def gradescope(report: Report) -> str:
    """Return what goes into ``/autograder/results/results.json``."""
    document: dict[str, object] = {
        "execution_time": round(report.seconds),
        "output": text.summary(report),
        "output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": [_gradescope_test(result) for result in report.results],
    }
    if report.leaderboard:
        document["leaderboard"] = [
            {"name": name, "value": value, "order": "asc" if "per message" in name else "desc"}
            for name, value in report.leaderboard.items()
        ]
    return json.dumps(document, indent=2) + "\n"


def _gradescope_test(result: Result) -> dict[str, object]:
    lines = [result.message] if result.status == SKIPPED else text.details(result)
    is_passed = result.status == PASSED or not result.applicable
    return {
        "score": result.score,
        "max_score": 0 if result.check.bonus else result.max_score,
        "status": "passed" if is_passed else "failed",
        "name": result.check.title,
        "name_format": "text",
        "number": result.check.id,
        "output": "\n".join(lines),
        "output_format": "text",
        "visibility": "visible",
        "tags": [result.check.group.lower(), result.status],
    }


def classroom50(report: Report) -> str:
    """Return ``result.json``, schema ``classroom50/result/v1``: whole numbers, and no bonus."""
    tests = [
        {
            "test-name": f"{result.check.id} {result.check.title}",
            "passed": result.status == PASSED or not result.applicable,
            "score": 0 if result.check.bonus else round(result.score),
            "max-score": 0 if result.check.bonus else round(result.max_score),
            "output": "\n".join(text.details(result)) or result.message,
        }
        for result in report.results
    ]
    identity = {
        name: os.environ.get(variable) or "unknown"
        for name, variable in CLASSROOM50_ENVIRONMENT.items()
    }
    now = dt.datetime.now(dt.UTC)
    document = {
        "schema": "classroom50/result/v1",
        **identity,
        "review": os.environ.get("REVIEW_URL") or identity["commit"],
        "datetime": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "score": sum(int(str(test["score"])) for test in tests),
        "max-score": sum(int(str(test["max-score"])) for test in tests),
        "tests": tests,
    }
    return json.dumps(document, indent=2) + "\n"


def autolab(report: Report) -> str:
    """Return the text, and in its last line the scores: a problem for each group of checks."""
    scores = {
        name: sum(one.score for one in report.results if one.check.group == name)
        for name in GROUPS.values()
    }
    return text.as_text(report) + "\n" + json.dumps({"scores": scores}) + "\n"
