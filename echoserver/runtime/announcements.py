"""What a server says when it begins and when it ends, and its exit code."""

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
from echoserver.system.sockets import somaxconn, spelled

_FEW_CONNECTIONS = 256

EXIT_OUTPUT_OWED = 4


def announce(config: Config, sockets: ListeningSockets, log: Log, **more: Any) -> None:
    """Log that the server serves: a client that connects from now on is served.

    Host and port are the first address; where there are several, all of them follow.
    """
    host, port = sockets.addresses[0]
    several = {"addresses": sockets.shown} if len(sockets.addresses) > 1 else {}
    log.announce(
        "listening",
        host=spelled(host),
        port=port,
        **several,
        backend=config.backend,
        handler=config.handler,
        pid=os.getpid(),
        **more,
    )


def log_forced_end(lifecycle: Lifecycle, log: Log) -> None:
    """Log that a second signal ended the process without its main flow."""
    log.error(
        "ended_by_force",
        signal=lifecycle.signal_name,
        reason="the main flow did not come back: from a handler, or from a plugin's import",
        exit_code=128 + lifecycle.signal,
    )


def exit_code(lifecycle: Lifecycle, totals: Totals) -> int:
    """Return what a server that has done this, and ended so, exits with."""
    if lifecycle.killed:
        return 128 + lifecycle.signal
    return EXIT_OUTPUT_OWED if totals.cut else 0


def warn_if_opened(
    before: Config | None, config: Config, sockets: ListeningSockets, log: Log
) -> None:
    """Say that everybody is let in now, where that is so, and was not before."""
    known = before is not None and not _guarded(before)
    reached = [host for host, _ in sockets.addresses if not _local(host)]
    if reached and not (known or _guarded(config)):
        log.warning(
            "open_to_all",
            host=spelled(reached[0]),
            advice="any client that reaches this address can use the server; restrict clients with "
            "--allow, or ask for a certificate with --tls-cert and --tls-client-ca",
        )


def _local(host: str) -> bool:
    return is_unix(host) or address_of(host).is_loopback


def _guarded(config: Config) -> bool:
    return bool(config.tls_cert or config.allow or config.proxy_protocol)


def warn_at_start(config: Config, sockets: ListeningSockets, log: Log, descriptors: int) -> None:
    """Log what the person who started the server may not have meant, or not know.

    Args:
        config: What the server serves by.
        sockets: The listening sockets.
        log: Where to say it.
        descriptors: How many files this process may have open.
    """
    warn_if_opened(None, config, sockets, log)
    ignored = list(config.warnings)
    cap = somaxconn()
    if sockets.handed_over:
        names = ("host", "port", "backlog", "socket_mode")
        typed = (config.source(one) for one in names if one in config.sources)
        ignored += [f"{one} has no effect on a socket that was handed over" for one in typed]
    elif cap is not None and cap < config.backlog:
        log.warning(
            "backlog_capped",
            backlog=config.backlog,
            somaxconn=cap,
            advice=f"sysctl -w net.core.somaxconn={config.backlog}",
        )
    for reason in ignored:
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
