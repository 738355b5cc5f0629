"""The command `echoload run`."""

from typing import Any

import click

from echoserver.command import Duration
from loadtest.cli.actions import act
from loadtest.cli.options import (
    CLIENT,
    CONNECTIONS,
    HANDLER,
    OBJECTIVES,
    OUTPUT,
    RATE,
    WORKLOAD,
    options_of,
)
from loadtest.cli.types import WholeNumber


@click.command()
@click.argument("address", metavar="HOST:PORT|unix:/PATH|@NAME")
@options_of(
    CONNECTIONS,
    [
        click.option(
            *("-d", "--duration"),
            type=Duration(),
            metavar="DURATION",
            help="How long.  [default: 5s]",
        ),
        click.option(
            *("-n", "--messages"),
            type=WholeNumber(1),
            metavar="MESSAGES",
            help="How many messages over all connections, instead of how long.",
        ),
        click.option(
            "--warmup",
            type=Duration(),
            default="0s",
            metavar="DURATION",
            help="Load without measuring, before the measurement.  [default: none]",
        ),
    ],
    RATE,
    HANDLER,
    WORKLOAD,
    CLIENT,
    OBJECTIVES,
    OUTPUT,
)
def run(**options: Any) -> int:
    """Put one running server under load."""
    return act("run", **options)
