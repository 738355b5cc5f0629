"""What can go wrong with a measurement, as sentences."""

from typing import NoReturn

import click


class LoadError(Exception):
    """A round that could not be run; the message is a sentence."""


class ClientError(LoadError):
    """A failure of the load client, or of its machine: no server is to blame for it."""


class NoThreadsError(ClientError):
    """This machine does not let the client start a thread for each connection."""


def usage(sentence: str) -> NoReturn:
    """Raise a usage error about the command line."""
    raise click.UsageError(sentence, click.get_current_context())
