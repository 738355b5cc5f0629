"""The options that several commands of `echoload` share, and how their values are typed."""

from collections.abc import Callable
from typing import Any

import click

from clients.distributions import parse_pauses, parse_sizes
from clients.tls_options import TLS
from echoserver.command import Duration
from loadtest.cli.types import (
    MAX_CONNECTIONS,
    MAX_PIPELINED,
    ParsedText,
    Rate,
    ValidatedText,
    WholeNumber,
)
from loadtest.results.objectives import parse_objectives


def options_of(*groups: list[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options of `groups` to a command, in this order."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return add


def timing(duration: str, warmup: str, *, duration_help: str) -> list[Any]:
    """Return the options for the duration and the warm-up of a load.

    Args:
        duration: The default duration.
        warmup: The default warm-up.
        duration_help: The help for the duration.
    """
    return [
        click.option(
            *("-d", "--duration"),
            type=Duration(),
            default=duration,
            show_default=True,
            metavar="DURATION",
            help=duration_help,
        ),
        click.option(
            "--warmup",
            type=Duration(),
            default=warmup,
            show_default=True,
            metavar="DURATION",
            help="Load without measuring, before the measurement.",
        ),
    ]


CONNECTIONS = [
    click.option(
        *("-c", "--connections"),
        type=WholeNumber(1, MAX_CONNECTIONS),
        default=400,
        show_default=True,
        metavar="N",
        help="Connections.",
    ),
]

RATE = [
    click.option(
        *("-R", "--rate"),
        type=Rate(),
        metavar="RATE",
        help="Open loop: send this many messages per second, however fast the server is; 1k:20k "
        "rises evenly.  [default: closed loop, each connection sends when it is answered]",
    ),
]

WORKLOAD = [
    click.option(
        "--size",
        type=ValidatedText(parse_sizes),
        default="64",
        show_default=True,
        metavar="SIZE",
        help="Bytes of a message: 64, 4KiB, uniform:1:4096, or file:SIZES with one in a line.",
    ),
    click.option(
        "--pipeline",
        type=WholeNumber(1, MAX_PIPELINED),
        default=1,
        show_default=True,
        metavar="K",
        help="Messages that a connection sends before it waits for the first one's reply.",
    ),
    click.option(
        "--think",
        type=ValidatedText(parse_pauses),
        metavar="TIME",
        help="Wait after each reply: 5ms, exp:5ms (the mean), uniform:1ms:9ms.  [default: none]",
    ),
    click.option(
        "--reconnect-every",
        type=WholeNumber(1),
        metavar="MESSAGES",
        help="Reconnect after this many messages; 1: one connection for each, whose time counts.  "
        "[default: never]",
    ),
    click.option(
        "--reconnect",
        is_flag=True,
        help="Make a connection again that the server ended or broke, and send again what was not "
        "answered on it.  [default: it stays out]",
    ),
    click.option(
        "--proxy-header",
        type=click.Choice(["v1", "v2"]),
        help="Begin each connection with a header of the PROXY protocol, as a balancer does.",
    ),
    click.option(
        "--active",
        type=WholeNumber(1, MAX_CONNECTIONS),
        metavar="N",
        help="Connections that send; the others are open and silent.  [default: all]",
    ),
    click.option(
        "--timeout",
        type=Duration(),
        default="10s",
        show_default=True,
        metavar="DURATION",
        help="For connecting, and for each reply.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=1,
        metavar="N",
        help="All content, sizes, pauses, and the order of rounds follow from it.  [default: 1]",
    ),
    *TLS,
]

CLIENT = [
    click.option(
        "--engine",
        type=click.Choice(["auto", "threads", "epoll"]),
        default="auto",
        show_default=True,
        help="The client: a thread for every connection; one event loop, which is faster; or "
        "threads as far as they are not the limit.",
    ),
    click.option(
        "--processes",
        type=WholeNumber(1, 256),
        default=1,
        show_default=True,
        metavar="P",
        help="Divide the connections among this many processes of the client.",
    ),
]

PIN = [
    click.option(
        "--pin",
        default="split",
        show_default=True,
        metavar="CPUS",
        help="split: a core for the server, and one for each process of the client, where there "
        "are two; off: all share all; or SERVERCPUS:CLIENTCPUS, as 0:1-3.",
    ),
]

FORMAT_OPTIONS = [
    click.option("--csv", "csv_file", metavar="FILE", help="Save the rounds as CSV."),
    click.option("--markdown", "markdown_file", metavar="FILE", help="Save tables for a PR."),
    click.option("--html", "html_file", metavar="FILE", help="Save a page with charts."),
    click.option("--hgrm", "hgrm_file", metavar="FILE", help="Save latencies for HdrHistogram."),
]

PORT = [
    click.option(
        "--port",
        type=WholeNumber(1, 65535),
        metavar="N",
        help="The port on which the command after -- listens.  [default: a free one, which {port} "
        "and the environment's PORT name]",
    ),
]

QUIET = [click.option("-q", "--quiet", is_flag=True, help="No progress.")]

OUTPUT = [
    click.option(
        "--json",
        "json_file",
        metavar="FILE",
        help="Save everything as JSON; -, here and below: to standard output, and the table to "
        "standard error.",
    ),
    *FORMAT_OPTIONS,
    *QUIET,
]

OBJECTIVES = [
    click.option(
        "--slo",
        type=ParsedText(parse_objectives),
        metavar="CONDITIONS",
        help="What must hold, as 'p99<20ms,errors=0,throughput>10k'; exit 3 where it does not.",
    ),
    click.option(
        "--junit",
        "junit_file",
        metavar="FILE",
        help="Save a test case for each target and objective, as CI systems read them.",
    ),
]

HANDLER = [
    click.option(
        "--handler",
        default="echo",
        show_default=True,
        metavar="NAME",
        help="What the server answers: echo, upper, sleep, cpu, or a class as file.py:Class.",
    ),
]

SERVER = [
    click.option(
        "--server-option",
        "server_options",
        multiple=True,
        metavar="NAME=VALUE",
        help="A setting of every backend's server, for example pool-size=8; may be repeated.",
    ),
]
