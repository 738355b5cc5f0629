"""The command `echoload doctor`."""

import click

from loadtest.cli.actions import act


@click.command()
def doctor() -> int:
    """Say what on this machine skews the results, and what to do about it."""
    return act("doctor")
