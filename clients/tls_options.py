"""The options by which clients are told to speak TLS."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from clients.tls import Trust

TLS = [
    click.option("--tls", is_flag=True, help="Speak TLS."),
    click.option("--ca", metavar="FILE", help="Certificates to trust.  [default: the system's]"),
    click.option("--cert", metavar="FILE", help="Our own certificate, for a server that asks."),
    click.option("--key", metavar="FILE", help="Its key, where that is in another file."),
    click.option("--insecure", is_flag=True, help="Accept any certificate."),
]


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options."""
    for option in reversed(TLS):
        command = option(command)
    return command


def trust_of(options: Mapping[str, Any]) -> "Trust | None":
    """Return whom to trust, by the options as typed; None: no TLS.

    Raises:
        click.UsageError: They contradict each other, or a file is of no use.
    """
    given = {name: options[name] for name in ("ca", "cert", "key", "insecure") if options[name]}
    context = click.get_current_context()
    if given and not options["tls"]:
        raise click.UsageError(f"--{next(iter(given))} is for TLS: add --tls", context)
    if "key" in given and "cert" not in given:
        raise click.UsageError("--key is of no use without --cert", context)
    if not options["tls"]:
        return None
    from clients.tls import Trust

    trust = Trust(**given)
    try:
        trust.context()
    except OSError as error:
        files = ", ".join(text for text in given.values() if isinstance(text, str))
        reason = error.strerror or error
        raise click.UsageError(f"cannot use the TLS files {files}: {reason}", context) from None
    return trust
