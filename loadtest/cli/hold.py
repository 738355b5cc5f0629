"""The command `echoload hold`."""

from typing import Any

import click

from loadtest.cli.actions import act
from loadtest.cli.options import (
    SERVER,
    options_of,
)
from loadtest.cli.types import WholeNumber


@click.command()
@options_of(
    [
        click.option(
            "--backends",
            default="process,thread,selector,coroutine,gevent,asyncio",
            show_default=True,
            metavar="NAMES",
            help="What to look at, separated by commas: names, or classes as file.py:Class.",
        ),
        click.option(
            *("-c", "--connections"),
            type=WholeNumber(1, 1_000_000),
            default=1000,
            show_default=True,
            metavar="N",
            help="Idle connections to open.",
        ),
    ],
    SERVER,
    [click.option("--json", "json_file", metavar="FILE", help="Save the result as JSON.")],
)
def hold(**options: Any) -> int:
    """Count how many idle connections servers hold, and the memory of each."""
    return act("hold", **options)
