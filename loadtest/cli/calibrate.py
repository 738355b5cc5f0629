"""The command `echoload calibrate`."""

from typing import Any

import click

from loadtest.cli.actions import act
from loadtest.cli.options import (
    PIN,
    options_of,
)


@click.command()
@options_of(
    PIN,
    [
        click.option(
            "--rounds",
            type=click.IntRange(1, 100),
            default=3,
            show_default=True,
            metavar="N",
            help="How often each engine is measured.",
        )
    ],
)
def calibrate(**options: Any) -> int:
    """Measure what this machine's load client can reach, and keep it to judge runs by."""
    return act("calibrate", **options)
