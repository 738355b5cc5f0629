"""Commands in processes that are forked, and not started: for dozens of runs that end at once.

To import what a command needs takes longer than to refuse what was typed. So one process has it
all imported, and forks for each run. What is run is the same entry point in a process of its own,
with its own arguments, environment, standard streams and exit code.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

_LONGEST = 60  # seconds for a run, as `launching.run` has
_runner: "subprocess.Popen[str] | None" = None


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself; the environment's ECHOSERVER_* stay out."""
    global _runner  # noqa: PLW0603 - one for each process of pytest's
    if _runner is None:
        _runner = subprocess.Popen(
            [sys.executable, "-m", "tests.support.preforked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(_end, _runner)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ECHOSERVER_")}
    order = {"words": words, "env": environment | (env or {}), "folder": str(Path.cwd())}
    assert _runner.stdin is not None
    assert _runner.stdout is not None
    _runner.stdin.write(json.dumps(order) + "\n")
    _runner.stdin.flush()
    code, out, err = json.loads(_runner.stdout.readline())
    return subprocess.CompletedProcess(words, code, out, err)


def _end(runner: "subprocess.Popen[str]") -> None:
    with runner:  # which closes what it reads its orders from, and waits
        pass


def _main() -> None:
    """Carry out orders until there are no more."""
    from loadtest.cli import COMMANDS  # all of them imported once, for all

    for name in COMMANDS:
        import_module(f"loadtest.cli.actions.{name.replace('-', '_')}")

    for line in sys.stdin:
        print(json.dumps(_carry_out(json.loads(line))), flush=True)


def _carry_out(order: dict[str, Any]) -> tuple[int, str, str]:
    streams = [os.memfd_create(name) for name in ("out", "err")]
    pid = os.fork()
    if not pid:
        _become(order, streams)
    _, status = os.waitpid(pid, 0)
    said = []
    for stream in streams:
        with os.fdopen(stream, "rb") as file:
            file.seek(0)
            said.append(file.read().decode())
    return os.waitstatus_to_exitcode(status), said[0], said[1]


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """In the child: run the command, and end."""
    signal.alarm(_LONGEST)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = list(order["words"])
    code: object = 1
    try:
        from echoserver import launch

        getattr(launch, sys.argv[0])()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _main()
