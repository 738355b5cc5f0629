"""The command `echoclient`."""

import sys
from typing import Any

import click

from clients.tls_options import tls_options, trust_of
from echoserver import __version__
from echoserver.command import Duration

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@click.command(name="echoclient", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("address", metavar="[HOST:PORT]", required=False)
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
    everything that comes back is written. Without HOST:PORT, the address is that of a server
    with the same ECHOSERVER_ settings: 127.0.0.1:9999 unless they say otherwise. TLS is spoken
    where they say so; whose certificate it has is not asked then.

    Exit codes: 0 fine; 1 no answer, a wrong one, or a broken connection; 2 usage.
    """
    from clients import interactive
    from clients.client import EchoClient

    trust = trust_of(options)
    if address is None:
        host, port, secured = _own_server()
        if secured and trust is None:
            from clients.tls import Trust

            trust = Trust(insecure=True)
    else:
        host, port = _parsed(address)
    if ping:
        return interactive.ping(host, port, timeout, trust)
    try:
        client = EchoClient(host, port, timeout, trust)
    except OSError as error:
        from clients.address import format_address

        where = format_address(host, port)
        raise click.ClickException(
            f"cannot connect to {where}: {error.strerror or error}; is the server running?"
        ) from None
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


def _own_server() -> tuple[str, int, bool]:
    """Return where a server of the same settings listens, and whether it speaks TLS."""
    from echoserver import load_config

    config = load_config()
    if not config.port:
        raise click.UsageError(
            f"{config.source('port')} is 0, so the server's port is not known; give HOST:PORT",
            click.get_current_context(),
        )
    host = _EVERY_ADDRESS.get(config.host, config.host)
    return host, config.port, config.tls_cert is not None
