"""The command `echoload compare`."""

from typing import Any

import click

from loadtest.cli.actions import act
from loadtest.cli.options import (
    CLIENT,
    CONNECTIONS,
    HANDLER,
    OBJECTIVES,
    OUTPUT,
    PIN,
    PORT,
    RATE,
    SERVER,
    WORKLOAD,
    options_of,
    timing,
)
from loadtest.cli.types import ParsedText, ValidatedText, read_share, read_sweep


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND {host} {port}]")
@options_of(
    [
        click.option(
            "--backends",
            metavar="NAMES",
            help="Backends, separated by commas: names, or classes as path/to/file.py:Class.  "
            "[default: process,thread,pool,selector,coroutine,gevent,asyncio]",
        ),
        click.option(
            *("-t", "--target", "targets"),
            multiple=True,
            metavar="[LABEL=]SERVER",
            help="One more server: a backend with settings of its own (fast=thread,workers=2), "
            "HOST:PORT or unix:/PATH, a peer (c-epoll), or a command "
            "('student=python3 s.py {port}').",
        ),
        click.option(
            "--peers",
            is_flag=True,
            help="In the same rounds, the stock Python servers of each model, and the model in C.",
        ),
        click.option(
            "--python",
            "pythons",
            multiple=True,
            metavar="PATH",
            help="Run every backend under this Python as well; may be repeated.",
        ),
        *PORT,
        click.option("--workers", metavar="N", help="Processes of every backend's server."),
    ],
    SERVER,
    CONNECTIONS,
    [
        *timing("1s", "250ms", duration_help="Duration of each round."),
        click.option(
            "--rounds",
            type=click.IntRange(1, 1000),
            metavar="N",
            help="Rounds of each target.  [default: as many as a ranking of them needs]",
        ),
        click.option(
            "--reference",
            metavar="TARGET",
            help="The target to compare all others with.  [default: thread, or the first]",
        ),
        click.option(
            "--sweep",
            type=ValidatedText(read_sweep),
            metavar="NAME=VALUES",
            help="Measure all for each value: connections=10,100,1000, or of size, pipeline, rate.",
        ),
    ],
    RATE,
    HANDLER,
    [
        click.option(
            "--handler-option",
            "handler_options",
            multiple=True,
            metavar="KEY=VALUE",
            help="An option of the handler; may be repeated.",
        ),
    ],
    WORKLOAD,
    CLIENT,
    PIN,
    OBJECTIVES,
    [
        click.option(
            "--baseline",
            metavar="FILE",
            help="A saved JSON; exit 3 where a target is worse by more than --max-regression.",
        ),
        click.option(
            "--max-regression",
            default="10%",
            show_default=True,
            type=ParsedText(read_share),
            metavar="SHARE",
            help="How much worse than the baseline is allowed.",
        ),
    ],
    OUTPUT,
)
def compare(**options: Any) -> int:
    """Compare servers: a fresh one for every target and round."""
    return act("compare", **options)
