"""Each format is what its reader reads."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from junitparser import JUnitXml
from tap.parser import Parser

from tests.support.checking import backend_words, specimen
from tests.support.launching import run

pytestmark = [
    pytest.mark.ci,
    pytest.mark.xdist_group("formats"),  # one report is made for all of them
]

ONLY = ("--only", "L1,L2,S1,S3,N*", "--skip", "N4,N5,N6,N7,N8", "--concurrency", "1")
FORMATS = (
    "text",
    "json",
    "junit",
    "tap",
    "gradescope",
    "classroom50",
    "autolab",
    "markdown",
    "html",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One report, with a check that passed, one that failed, and some skipped, in every format."""
    folder = tmp_path_factory.mktemp("formats")
    pairs = [
        word for form in FORMATS for word in ("--format", form, "--output", str(folder / form))
    ]
    environment = {
        "CLASSROOM": "networks",
        "ASSIGNMENT": "echo",
        "SUBMISSION_TAG": "submit/1",
        "COMMIT_URL": "https://example.org/commit",
        "RELEASE_URL": "https://example.org/release",
    }
    words = specimen("decodes_chunks")
    done = run("echoload", "check", *ONLY, *pairs, "--", *words, env=environment)
    assert done.returncode == 0, done.stderr  # three of the hosts want it so
    return {form: (folder / form).read_text() for form in FORMATS}


def test_json(written: dict[str, str]) -> None:
    found = json.loads(written["json"])
    assert found["schema"] == "echoload-check/1"
    assert found["complete"] is True
    assert (found["seed"], found["expect"]) == (1, "echo")
    assert found["server"].endswith("decodes_chunks.py '{port}'")
    keys = {"id", "title", "status", "score", "max_score", "message", "hint", "evidence", "seconds"}
    for one in found["checks"]:
        assert keys <= one.keys()
    by_id = {one["id"]: one for one in found["checks"]}
    assert [one["status"] for one in found["checks"]] == [
        *("passed", "passed", "failed", "passed", "skipped", "skipped", "skipped", "passed")
    ]
    assert found["score"] == 4 + 4 + 4 + 5  # with the bonus
    assert found["max_score"] == 4 * 4  # without
    evidence = by_id["S1"]["evidence"]
    assert evidence["difference"]["offset"] == 128
    assert any("sent 257 bytes" in line for line in evidence["timeline"])
    assert any("descriptors" in line for line in evidence["server"])


def test_junit(written: dict[str, str]) -> None:
    suite = ET.fromstring(written["junit"]).find("testsuite")  # noqa: S314 - our own
    assert suite is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "8", "failures": "1", "errors": "0", "skipped": "3"}
    assert float(suite.get("time", "")) > 0
    cases = {str(case.get("name")).split()[0]: case for case in suite.iter("testcase")}
    failure = cases["S1"].find("failure")
    assert failure is not None
    assert "from byte 128" in str(failure.get("message"))
    assert "where to look:" in str(failure.text)
    assert cases["S1"].get("classname") == "echoload.check.Stream"
    assert cases["N1"].find("skipped") is not None
    assert list(cases["L1"]) == []
    assert all(float(case.get("time", "")) >= 0 for case in cases.values())


def test_junit_as_another_reader_sees_it(written: dict[str, str]) -> None:
    (suite,) = JUnitXml.fromstring(written["junit"])
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (8, 1, 0, 3)
    outcomes = [type(case.result[0]).__name__ if case.result else "" for case in suite]
    assert outcomes == ["", "", "Failure", "", "Skipped", "Skipped", "Skipped", ""]


def test_tap_as_another_reader_sees_it(written: dict[str, str]) -> None:
    """It knows version 13, in which nothing of this is written differently."""
    text = written["tap"].replace("TAP version 14", "TAP version 13")
    lines = list(Parser().parse_text(text))
    assert [line.category for line in lines].count("unknown") == 0
    (plan,) = (line for line in lines if line.category == "plan")
    tests = [line for line in lines if line.category == "test"]
    assert plan.expected_tests == len(tests) == 8
    assert [one.number for one in tests if not one.ok] == [3]
    assert [one.number for one in tests if one.skip] == [5, 6, 7]
    assert tests[2].yaml_block["message"].startswith("client A got")


def test_tap(written: dict[str, str], tmp_path: Path) -> None:
    lines = written["tap"].splitlines()
    assert lines[:2] == ["TAP version 14", "1..8"]
    points = [line for line in lines if re.match(r"(not )?ok ", line)]
    assert [line.split(" - ")[0] for line in points] == [
        *("ok 1", "ok 2", "not ok 3", "ok 4", "ok 5", "ok 6", "ok 7", "ok 8")
    ]
    assert points[4].endswith(
        "# SKIP it needs 2 clients at a time, and --concurrency 1 was declared"
    )
    start = lines.index("  ---")
    assert lines[start - 1].startswith("not ok 3")
    assert lines[start + 1].startswith('  message: "client A got')
    assert "  ..." in lines[start:]


@pytest.mark.skipif(not shutil.which("prove"), reason="prove, of Perl, is not installed")
def test_tap_is_read_by_prove(written: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "grade.tap"
    path.write_text(written["tap"].replace("TAP version 14", "TAP version 13"))  # all that it knows
    done = subprocess.run(["prove", "-e", "cat", path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"Failed 1/8 subtests\s+\(less 3 skipped subtests: 4 okay\)", done.stdout)
    assert "Parse errors" not in done.stdout + done.stderr


def test_gradescope(written: dict[str, str]) -> None:
    found = json.loads(written["gradescope"])
    assert found["output"].startswith("4 passed, 1 failed, 3 skipped: ")
    assert found["visibility"] == "visible"
    assert found["stdout_visibility"] == "hidden"
    assert isinstance(found["execution_time"], int)
    for test in found["tests"]:
        assert test["status"] in {"passed", "failed"}
        assert test["output_format"] == test["name_format"] == "text"
        assert test["visibility"] == "visible"
        assert test["tags"][0] in {"life", "stream", "concurrency"}
        assert test["name"]
    by_number = {test["number"]: test for test in found["tests"]}
    assert by_number["S1"]["status"] == "failed"
    assert (by_number["S1"]["score"], by_number["S1"]["max_score"]) == (0, 4)
    assert "where to look:" in by_number["S1"]["output"]
    assert (by_number["N9"]["score"], by_number["N9"]["max_score"]) == (5, 0)  # a bonus
    assert (by_number["N1"]["score"], by_number["N1"]["max_score"]) == (0, 0)  # not applicable
    assert "leaderboard" not in found  # where answers are wrong, there is no race


def test_gradescope_has_a_leaderboard_of_servers_that_are_right() -> None:
    words = ("--only", "L1,L2", "--format", "gradescope", "--", *backend_words("selector", None))
    found = json.loads(run("echoload", "check", *words).stdout)
    board = {one["name"]: one for one in found["leaderboard"]}
    assert board["messages per second"]["value"] > 100
    assert board["messages per second"]["order"] == "desc"
    assert board["CPU microseconds per message"]["value"] > 0
    assert board["CPU microseconds per message"]["order"] == "asc"


def test_classroom50(written: dict[str, str]) -> None:
    found = json.loads(written["classroom50"])
    assert found.keys() == {
        *("schema", "classroom", "assignment", "submission", "commit", "release", "review"),
        *("datetime", "score", "max-score", "tests"),
    }
    assert found["schema"] == "classroom50/result/v1"
    assert (found["classroom"], found["assignment"]) == ("networks", "echo")
    assert found["review"] == found["commit"] == "https://example.org/commit"
    assert re.fullmatch(r"\d{4}(-\d\d){2}T\d\d(:\d\d){2}Z", found["datetime"])
    for test in found["tests"]:
        assert type(test["score"]) is type(test["max-score"]) is int
        assert 0 <= test["score"] <= test["max-score"]
        assert isinstance(test["passed"], bool)
        assert test["test-name"]
    assert found["score"] == sum(test["score"] for test in found["tests"]) == 12
    assert found["max-score"] == sum(test["max-score"] for test in found["tests"]) == 16


def test_classroom50_takes_whole_numbers_only(tmp_path: Path) -> None:
    weights = tmp_path / "weights.toml"
    weights.write_text("L1 = 2.5\n")
    options = ("--format", "classroom50", "--weights", str(weights))
    done = run("echoload", "check", *options, "--", "x")
    assert done.returncode == 2
    assert "takes whole numbers only; see L1" in done.stderr


def test_autolab(written: dict[str, str]) -> None:
    last = written["autolab"].splitlines()[-1]
    assert json.loads(last) == {
        "scores": {"Life": 8.0, "Stream": 4.0, "Connection": 0, "Concurrency": 5.0}
    }


def test_text_and_markdown_and_html_say_the_same(written: dict[str, str]) -> None:
    summary = written["text"].splitlines()[-1]
    assert summary.startswith(
        "4 passed, 1 failed, 3 skipped: 12 of 16 points, and 5 as a bonus (seed 1, "
    )
    assert written["markdown"].startswith(f"### {summary}\n")
    assert f"<h1>{summary}</h1>" in written["html"]
    assert (
        "| S1 | returns all 256 byte values, NUL and CRLF | **failed** | 0 of 4 |"
        in (written["markdown"])
    )
    assert "<details><summary>S1 " in written["markdown"]
    assert '<span class="status failed">failed</span>' in written["html"]
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", written["html"])  # nothing to fetch


def test_what_a_server_prints_cannot_become_markup(tmp_path: Path) -> None:
    page, text = tmp_path / "x.html", tmp_path / "x.md"
    words = [sys.executable, "-c", "print('<script>``` ]]> &amp; | \\x00\\x1b \\ud7ff')"]
    junit = tmp_path / "x.xml"
    pairs = ("--format", "html", "--output", str(page), "--format", "markdown", "--output")
    run(
        *("echoload", "check", "--only", "L1", *pairs, str(text)),
        *("--format", "junit", "--output", str(junit), "--", *words),
    )
    assert "<script>" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()
    assert text.read_text().count("```") == 2
    ET.fromstring(junit.read_text())  # noqa: S314 - our own


def test_exit_codes_follow_the_host() -> None:
    bad = ("--", *specimen("decodes_chunks"))
    codes = {
        form: run("echoload", "check", "--only", "S1", "--format", form, *bad).returncode
        for form in ("junit", "classroom50", "autolab")
    }
    assert codes == {"junit": 1, "classroom50": 0, "autolab": 0}
