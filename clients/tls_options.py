"""The options by which clients are told to speak TLS."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from clients.tls import Trust

_TYPED = ParameterSource.COMMANDLINE

TLS = [
    click.option("--tls", is_flag=True, help="Speak TLS."),
    click.option(
        "--ca",
        metavar="FILE",
        envvar="ECHOCLIENT_CA",
        help="CA certificates (PEM), by one of which the server's must be issued.  "
        "[default: the system's]",
    ),
    click.option(
        "--cert",
        metavar="FILE",
        envvar="ECHOCLIENT_CERT",
        help="Our own certificate (PEM), for a server that asks for one.",
    ),
    click.option(
        "--key",
        metavar="FILE",
        envvar="ECHOCLIENT_KEY",
        help="Its private key, where that is in another file.",
    ),
    click.option("--insecure", is_flag=True, help="Accept any certificate."),
]


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options."""
    for option in reversed(TLS):
        command = option(command)
    return command


def trust_of(options: Mapping[str, Any], *, implied: bool = False) -> "Trust | None":
    """Return whom to trust, by the options as typed; None: no TLS.

    Args:
        options: By name.
        implied: The server is known to speak TLS, and to be ours: no certificate is asked of it.

    Raises:
        click.UsageError: They contradict each other, or a file is of no use.
    """
    given = {name: options[name] for name in ("ca", "cert", "key", "insecure") if options[name]}
    context = click.get_current_context()
    if not (options["tls"] or implied):
        typed = [name for name in given if context.get_parameter_source(name) is _TYPED]
        if typed:  # the environment may hold what is for other servers
            raise click.UsageError(f"--{typed[0]} is for TLS: add --tls", context)
        return None
    if "key" in given and "cert" not in given:
        raise click.UsageError("--key is of no use without --cert", context)
    if implied and not options["tls"] and "ca" not in given:
        given["insecure"] = True
    from ssl import SSLError

    from clients.tls import Trust

    trust = Trust(**given)
    try:
        trust.context()
    except OSError as error:
        files = ", ".join(text for text in given.values() if isinstance(text, str))
        reason = error.strerror or error
        if isinstance(error, SSLError):
            reason = "there is no certificate, or no private key, in PEM form where one should be"
        raise click.UsageError(f"cannot use the TLS files {files}: {reason}", context) from None
    return trust
