"""The command `echoload check`."""

from typing import Any

import click

from echoserver.command import Duration
from loadtest.cli.actions import act
from loadtest.cli.options import PORT, options_of
from loadtest.cli.types import WholeNumber

_NAMES = (
    *("text", "json", "junit", "tap"),
    *("gradescope", "classroom50", "autolab", "markdown", "html"),
)


class InOrder(click.Command):
    """A command that notes the order in which --format and --output were typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note the order, then parse as usual."""
        order: list[tuple[str, str]] = []
        words = iter(args)
        for word in words:
            if word == "--":
                break
            name, equals, value = word.partition("=")
            if name in {"--format", "--output"}:
                order.append((name, value if equals else next(words, "")))
        ctx.meta["order"] = order
        return super().parse_args(ctx, args)


@click.command("check", cls=InOrder)
@click.argument(
    "words", nargs=-1, type=click.UNPROCESSED, metavar="HOST:PORT | -- COMMAND {host} {port}"
)
@options_of(
    [
        click.option(
            "--expect",
            type=click.Choice(["echo", "upper", "line"]),
            default="echo",
            show_default=True,
            help="What is owed: every byte; bytes.upper() of it; or each line once it is complete.",
        ),
        *PORT,
        click.option("--build", metavar="COMMAND", help="Run this first, as make; by sh -c."),
        click.option("--only", metavar="CHECKS", help="Only these, as 'N4,C*'."),
        click.option("--skip", metavar="CHECKS", help="Not these."),
        click.option(
            "--clients",
            type=WholeNumber(1, 10_000),
            default=400,
            show_default=True,
            metavar="N",
            help="Clients at a time, at most.",
        ),
        click.option(
            "--concurrency",
            type=WholeNumber(1),
            metavar="N",
            help="The server is meant to serve at most this many clients at a time; the others are "
            "to wait, and to be served later.  [default: no limit]",
        ),
        click.option(
            "--timeout",
            type=Duration(),
            default="10s",
            show_default=True,
            metavar="DURATION",
            help="How long each check waits for something that does not come. A check in which "
            "bytes go on coming may take six times as long.",
        ),
        click.option(
            "--total-timeout",
            type=Duration(),
            default="5m",
            show_default=True,
            metavar="DURATION",
            help="For everything; what is not reached by then is skipped, and counts as missed.",
        ),
        click.option(
            "--repeat",
            type=WholeNumber(1, 1000),
            default=1,
            show_default=True,
            metavar="K",
            help="Run each check K times; it passes if it passes every time.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=1,
            show_default=True,
            metavar="N",
            help="All content and every random choice follow from it.",
        ),
    ],
    [
        click.option(
            "--memory",
            type=WholeNumber(1),
            metavar="BYTES",
            help="Kill the server when its processes use more together, as 512MiB.",
        ),
        click.option(
            "--nofile",
            type=WholeNumber(8),
            metavar="N",
            help="The most descriptors of each of its processes.",
        ),
        click.option(
            "--nproc",
            type=WholeNumber(1),
            metavar="N",
            help="The most processes and threads of its user (RLIMIT_NPROC; root is exempt).",
        ),
        click.option("--user", metavar="NAME", help="Run it as this user; needs root."),
    ],
    [
        click.option(
            "--format",
            "formats",
            type=click.Choice(_NAMES),
            multiple=True,
            help="Format of the report; an --output after it names the file, otherwise it goes to "
            "the terminal. Both may be repeated.  [default: text]",
        ),
        click.option("--output", "outputs", multiple=True, metavar="FILE", help="See --format."),
        click.option(
            "--weights",
            metavar="FILE",
            help="A TOML file of what checks count, in lines such as C7 = 10.",
        ),
        click.option("--list", "list_", is_flag=True, help="Show all checks, and end."),
        click.option("--explain", metavar="CHECK", help="Explain a check, and end."),
    ],
)
@click.pass_context
def check(ctx: click.Context, /, **options: Any) -> int:
    """Grade an echo server, in any language: one that runs, or one that a command starts.

    Exit codes: 0 all passed; 1 something failed; 2 it could not be graded; 130 Ctrl-C or SIGTERM,
    with what was found so far; 141 all passed, but standard output was closed. With --format
    gradescope, classroom50 or autolab, it is 0 when it was graded, for the host reads the outcome
    from the file.
    """
    return act("check", order=ctx.meta["order"], **options)
