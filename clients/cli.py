"""The command `echoclient`."""

import sys
from typing import TYPE_CHECKING, Any

import click

from clients.tls_options import tls_options, trust_of
from echoserver import __version__
from echoserver.command import Duration

if TYPE_CHECKING:
    from echoserver import Config


@click.command(name="echoclient", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("address", metavar="[HOST:PORT|unix:/PATH|@NAME]", required=False)
@click.option("--ping", is_flag=True, help="Send a nonce, verify the reply, print the time taken.")
@click.option(
    "--timeout",
    type=Duration(),
    default="5s",
    metavar="DURATION",
    help="For connecting, and for the reply to --ping.  [default: 5s]",
)
@tls_options
@click.version_option(__version__, message="%(prog)s %(version)s")
def command(*, address: str | None, ping: bool, timeout: float, **options: Any) -> int:
    """Talk to an echo server.

    At a terminal, type lines and see the replies. In a pipe, standard input is sent, and
    everything that comes back is written. Without an address, it is the first one of a server
    with the same ECHOSERVER_ settings: 127.0.0.1:9999 unless they say otherwise. TLS is spoken
    where they say so, without verifying its certificate, and a PROXY header sent. ECHOCLIENT_CA,
    ECHOCLIENT_CERT and ECHOCLIENT_KEY stand for --ca, --cert and --key.

    Exit codes: 0 fine; 1 no answer, a wrong one, or a broken connection; 2 usage.
    """
    from clients import interactive
    from clients.address import EVERY_ADDRESS, format_address
    from clients.client import EchoClient

    preface, implied = b"", False
    if address is None:
        config = _own_server()
        first = config.host[0]
        host, port = EVERY_ADDRESS.get(first, first), config.port
        implied = config.tls_cert is not None
        if config.proxy_protocol:
            from echoserver.admission.proxy_protocol import LOCAL as preface  # noqa: N811 - one of two
    else:
        host, port = _parsed(address)
    trust = trust_of(options, implied=implied)
    if ping:
        return interactive.ping(host, port, timeout, trust, preface)
    try:
        client = EchoClient(host, port, timeout, trust, preface)
    except ConnectionRefusedError as error:
        raise click.ClickException(
            f"cannot connect to {format_address(host, port)}: {error.strerror}; "
            "is the server running?"
        ) from None
    except OSError as error:
        from clients.tls import explain

        raise click.ClickException(f"{format_address(host, port)} {explain(error)}") from None
    with client:
        if sys.stdin is not None and sys.stdin.isatty():
            return interactive.converse(client)
        return interactive.pipe(client)


def _parsed(address: str) -> tuple[str, int]:
    from clients.address import parse_address

    try:
        return parse_address(address)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


def _own_server() -> "Config":
    """Return the settings of a server that is started as this command is."""
    from clients.address import is_unix
    from echoserver import load_config

    config = load_config()
    if not (config.port or is_unix(config.host[0])):
        raise click.UsageError(
            f"{config.source('port')} is 0, so the server's port is not known; give HOST:PORT",
            click.get_current_context(),
        )
    return config
