"""The command `echoload report`."""

from typing import Any

import click

from loadtest.cli.actions import act
from loadtest.cli.options import (
    FORMAT_OPTIONS,
    options_of,
)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@options_of(FORMAT_OPTIONS)
def report(**options: Any) -> int:
    """Show saved results again, several runs side by side, in any format."""
    return act("report", **options)
