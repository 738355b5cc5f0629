"""The conformance suite must be able to fail: each defect is caught, by the checks it breaks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broken import backends
from tests.conformance import test_stream

HERE = Path(__file__).parents[1]
SUITE = ["test_stream.py", "test_connection.py", "test_concurrency.py"]
CLASSIC = [
    backends.LeaksAcceptedSocket,
    backends.NoHalfClose,
    backends.SendForSendall,
    backends.DropsOutputOnClose,
    backends.SharedBuffer,
]
MORE = [
    backends.SpinsOnClosedPeer,
    backends.BuffersWithoutLimit,
    backends.DecodesText,
]
BROKEN = [*CLASSIC, *(pytest.param(broken, marks=pytest.mark.slow) for broken in MORE)]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(120)
@pytest.mark.parametrize("broken", BROKEN, ids=[broken.__name__ for broken in CLASSIC + MORE])
def test_a_defect_fails_exactly_its_checks(broken: type[backends.BrokenThreads]) -> None:
    name = broken.__name__
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"),
            *("-k", "not 2workers and not tls and not unix"),
            *("--tb=no", "-rfE", "--patience=2", f"--backend={HERE}/broken/backends.py:{name}"),
            *(str(HERE / "conformance" / file) for file in SUITE),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=HERE.parent,
    )
    # A test that is ended by its timeout exits 1 as well, but without this line.
    assert re.search(r"^\d+ (passed|failed).* in ", result.stdout, re.MULTILINE), (
        result.stdout + result.stderr
    )
    failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)(\[\S+\])", result.stdout, re.MULTILINE)
    found = {check + handler(check, which) for check, which in failed}
    assert found - broken.may_fail == broken.fails


def handler(check: str, parameters: str) -> str:
    """Keep the handler of ``[Backend-handler]``, for checks that run over every handler."""
    name = parameters.strip("[]").split("-")[1]
    return f"[{name}]" if hasattr(test_stream, check) else ""
