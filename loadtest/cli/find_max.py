"""The command `echoload find-max`."""

from typing import Any

import click

from loadtest.cli.actions import act
from loadtest.cli.options import (
    CLIENT,
    CONNECTIONS,
    HANDLER,
    QUIET,
    WORKLOAD,
    options_of,
    timing,
)
from loadtest.cli.types import ParsedText, read_share
from loadtest.results.objectives import parse_objectives


@click.command("find-max")
@click.argument("address", metavar="HOST:PORT|unix:/PATH|@NAME")
@options_of(
    CONNECTIONS,
    [
        click.option(
            "--slo",
            type=ParsedText(parse_objectives),
            default="p99<20ms,errors=0",
            show_default=True,
            metavar="CONDITIONS",
            help="The objectives that must hold.",
        ),
        *timing("3s", "500ms", duration_help="How long to try each rate."),
        click.option(
            "--precision",
            default="5%",
            show_default=True,
            type=ParsedText(read_share),
            metavar="SHARE",
            help="The precision of the rate.",
        ),
    ],
    HANDLER,
    WORKLOAD,
    CLIENT,
    [click.option("--json", "json_file", metavar="FILE", help="Save the steps as JSON.")],
    QUIET,
)
def find_max(**options: Any) -> int:
    """Find the highest rate at which objectives hold."""
    return act("find_max", **options)
