"""Where the three commands start.

`clients` and `loadtest` are names that a student gives to a file of their own. Where such a file
hides the package (PYTHONPATH puts it first), the command says so in one sentence. This module is
the only one of the server's that knows the other packages' names, and it imports them only to
start the command that was typed.
"""

import importlib
import sys
from pathlib import Path
from typing import NoReturn


def echoserver() -> NoReturn:
    """Start the server."""
    _start("echoserver", "echoserver")


def echoclient() -> NoReturn:
    """Start the interactive client."""
    _start("echoclient", "clients")


def echoload() -> NoReturn:
    """Start the load tester."""
    _start("echoload", "loadtest")


def _start(command_name: str, package_name: str) -> NoReturn:
    try:
        _import_and_run(command_name, package_name)
    except KeyboardInterrupt:  # before anything was started
        sys.exit(130)


def _import_and_run(command_name: str, package_name: str) -> NoReturn:
    package = importlib.import_module(package_name)
    home = Path(__file__).resolve().parent.parent / package_name
    if Path(package.__file__ or "").resolve().parent != home:
        other_path = package.__file__ or next(iter(package.__path__), "a folder of that name")
        sys.exit(
            f"{command_name}: {other_path} hides echoserver's package {package_name!r}; rename it, "
            "or take its folder off PYTHONPATH"
        )
    cli = importlib.import_module(f"{package_name}.cli")
    from echoserver.command import run  # noqa: PLC0415 - after the packages are known to be ours

    run(cli.command)
