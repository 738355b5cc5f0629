"""The log lines at a server's start and end, and its exit code."""

import os
from typing import Any

from echoserver.addresses import is_unix
from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.config import Config
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.counters import Totals
from echoserver.monitoring.log import Log
from echoserver.service.rules import address_of
from echoserver.system.descriptors import room_for_connections
from echoserver.system.sockets import canonical_host, somaxconn

_FEW_CONNECTIONS = 256  # fewer deserve a warning

EXIT_OUTPUT_OWED = 4


def announce(config: Config, sockets: ListeningSockets, log: Log, **details: Any) -> None:
    """Log that the server is listening: clients that connect from now on are served.

    Host and port are those of the first address. If there are several, a list of all follows.
    """
    host, port = sockets.addresses[0]
    addresses = {"addresses": sockets.display_addresses} if len(sockets.addresses) > 1 else {}
    log.announce(
        "listening",
        host=canonical_host(host),
        port=port,
        **addresses,
        backend=config.backend,
        handler=config.handler,
        pid=os.getpid(),
        **details,
    )


def log_forced_end(lifecycle: Lifecycle, log: Log) -> None:
    """Log that a second signal ended the process before its main flow could react."""
    log.error(
        "ended_by_force",
        signal=lifecycle.signal_name,
        reason="the main flow is stuck in a handler, or in a plugin's import",
        exit_code=128 + lifecycle.signal,
    )


def exit_code(lifecycle: Lifecycle, totals: Totals) -> int:
    """Return the exit code of a server with these totals and this end."""
    if lifecycle.killed:
        return 128 + lifecycle.signal
    return EXIT_OUTPUT_OWED if totals.cut else 0


def warn_if_open_to_all(
    before: Config | None, config: Config, sockets: ListeningSockets, log: Log
) -> None:
    """Warn that the server is open to every client, if it is and was not before."""
    already_open = before is not None and not _is_guarded(before)
    public_hosts = [host for host, _ in sockets.addresses if not _is_local(host)]
    if public_hosts and not (already_open or _is_guarded(config)):
        log.warning(
            "open_to_all",
            host=canonical_host(public_hosts[0]),
            advice="any client that reaches this address can use the server; restrict clients with "
            "--allow, or ask for a certificate with --tls-cert and --tls-client-ca",
        )


def _is_local(host: str) -> bool:
    return is_unix(host) or address_of(host).is_loopback


def _is_guarded(config: Config) -> bool:
    return bool(config.tls_cert or config.allow or config.proxy_protocol)


def warn_at_start(config: Config, sockets: ListeningSockets, log: Log, descriptors: int) -> None:
    """Log warnings about settings and limits that the operator may not expect.

    Args:
        config: The server's configuration.
        sockets: The listening sockets.
        log: The log for the warnings.
        descriptors: How many files this process may have open.
    """
    warn_if_open_to_all(None, config, sockets, log)
    reasons = list(config.warnings)
    cap = somaxconn()
    if sockets.from_service_manager:
        names = ("host", "port", "backlog", "socket_mode")
        options = (config.source(name) for name in names if name in config.sources)
        reasons += [f"{one} has no effect on a socket that was handed over" for one in options]
    elif cap is not None and cap < config.backlog:
        log.warning(
            "backlog_capped",
            backlog=config.backlog,
            somaxconn=cap,
            advice=f"sysctl -w net.core.somaxconn={config.backlog}",
        )
    for reason in reasons:
        log.warning("setting_ignored", reason=reason)
    room = room_for_connections(descriptors)
    if (config.max_connections or _FEW_CONNECTIONS) > room:
        log.warning(
            "descriptors_scarce",
            max_connections=config.max_connections or room,
            descriptors=descriptors,
            advice=f"there are descriptors for {room} connections at a time; raise the hard limit "
            "(ulimit -Hn)",
        )
