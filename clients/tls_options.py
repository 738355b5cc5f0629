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
    from clients.tls import CredentialsError, Trust  # noqa: PLC0415 - ssl is large

    trust = Trust(**given)
    try:
        trust.context()
    except OSError as error:
        sentence = f"cannot read the TLS file {error.filename}: {error.strerror}"
        raise click.UsageError(sentence, context) from None
    except CredentialsError as error:
        # Where no --key is given, the key is to be in the certificate's file.
        name = error.part if error.part in given else "cert"
        on_line = context.get_parameter_source(name) is _TYPED
        source = f"--{name}" if on_line else f"ECHOCLIENT_{name.upper()}"
        sentence = f"{source}: cannot use {given[name]}: {error}"
        raise click.UsageError(sentence, context) from None
    return trust
