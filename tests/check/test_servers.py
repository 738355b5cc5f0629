"""`echoload check` finds nothing wrong with servers that are right, and all that specimens do."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import echoserver
from tests.conftest import BUILTIN
from tests.support import pace
from tests.support.checking import Specimen, backend_words, check, failed, specimens, status
from tests.support.launching import command, half_a_core

SPECIMENS = [pytest.param(one, id=one.path.name) for one in specimens()]


def _declared(bound: int | None) -> list[str]:
    return ["--concurrency", str(bound)] if bound else []


@pytest.mark.parametrize(
    "model",
    [pytest.param(one, marks=pytest.mark.ci) for one in BUILTIN],
)
def test_nothing_is_wrong_with_life_and_connections_of_a_backend(model: str) -> None:
    bound = echoserver.load_backend(model).concurrency(echoserver.Config())
    found = check(backend_words(model, None), "--only", "L*,C*,N1", *_declared(bound))
    assert failed(found) == {}
    assert status(found, "L1") == "passed"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_nothing_is_wrong_with_a_backend(
    backend: str, workers: int | None, concurrency: Callable[..., int | None]
) -> None:
    found = check(backend_words(backend, workers), *_declared(concurrency()), timeout=180)
    assert failed(found) == {}
    assert found["score"] > 0
    passed = {one["id"] for one in found["checks"] if one["status"] == "passed"}
    bound = concurrency()
    assert len(found["checks"]) - len(passed) == (3 if bound == 1 else 0)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["thread", "process"])
def test_half_a_core_and_768_mb_suffice(name: str) -> None:
    begun = time.monotonic()
    with half_a_core(768 << 20) as limited:
        done = subprocess.run(
            [*limited, command("echoload"), "check", "--", *backend_words(name, None)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert pace.within(time.monotonic() - begun, 200)  # 20, where nothing else runs


@pytest.mark.slow
@pytest.mark.repeats
@pytest.mark.timeout(3600)
def test_nothing_is_wrong_twenty_times_in_a_row(
    backend: str, workers: int | None, concurrency: Callable[..., int | None]
) -> None:
    options = ("--repeat", "20", "--total-timeout", "1h", *_declared(concurrency()))
    found = check(backend_words(backend, workers), *options, timeout=3600)
    assert failed(found) == {}
    assert found["repeat"] == 20


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize("one", SPECIMENS)
def test_a_specimen_fails_what_it_declares_and_nothing_else(one: Specimen, tmp_path: Path) -> None:
    if one.missing:
        pytest.skip(f"{one.missing} is not installed")
    found = check(one.words(tmp_path), "--expect", one.expect, "--timeout", "5s", timeout=280)
    assert set(failed(found)) == one.fails, failed(found)


def test_there_are_specimens_in_several_languages() -> None:
    kinds = [one.path.suffix for one in specimens()]
    assert len(kinds) >= 20
    assert {".py", ".c", ".js", ".sh"} == set(kinds)
