"""Commands in a network of their own, with nothing but loopback in it (network_namespaces(7))."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.launching import command

UNABLE = 77  # the exit code of a script that finds a namespace in which it cannot do its work


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return the mark of a test that needs such a namespace, and programs in it."""
    able = os.geteuid() == 0 and all(map(shutil.which, ("unshare", *programs)))
    reason = f"making a network namespace needs root, unshare and {' and '.join(programs)}"
    return pytest.mark.skipif(not able, reason=reason)


def run_in_namespace(script: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script there, with this project's commands in PATH; skip where it cannot."""
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        env={**os.environ, "PATH": f"{Path(command('echoload')).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    if done.returncode == UNABLE:
        pytest.skip("a network namespace of this machine lacks what this test sets up")
    return done
