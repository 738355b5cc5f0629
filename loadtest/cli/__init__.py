"""The command `echoload`: its commands are imported when they are called."""

from importlib import import_module

import click

from echoserver import __version__

COMMANDS = {
    "calibrate": "Measure what the load client reaches here.",
    "check": "Grade any echo server, in any language.",
    "compare": "Compare servers: a fresh one for every target and round.",
    "doctor": "Say what on this machine skews the results.",
    "find-max": "Find the highest rate at which objectives hold.",
    "hold": "Count the idle connections that servers hold.",
    "report": "Show saved results again, in any format.",
    "run": "Put one running server under load.",
}
"""Commands by name, with what the list of commands says of each."""


class LazyGroup(click.Group):
    """A group that imports the module of a command only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as it is inherited
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        """Return the command of a name; None: there is none."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command_: click.Command = getattr(import_module(f"{__name__}.{name}"), name)
        return command_

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - likewise
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    name="echoload", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def command() -> None:
    """Put echo servers under load, and check every byte that comes back.

    Exit codes: 0 measured; 1 could not run; 2 usage; 3 an objective or the baseline was missed; 4 a
    reply was wrong, nothing was verified, or the server ended early; 5 it cannot be told, because
    the client was the limit or the rounds were too few; 130 Ctrl-C or SIGTERM, after the table and
    files so far; 141 measured and saved, but standard output was closed.
    """
