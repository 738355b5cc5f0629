"""Reloading the configuration while the server serves."""

from contextlib import suppress
from typing import TYPE_CHECKING

from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.config import Config, reload_config
from echoserver.conversation.failures import describe_exception
from echoserver.errors import ConfigError
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.log import Log
from echoserver.runtime.announcements import warn_if_open_to_all
from echoserver.runtime.plan import ServerPlan
from echoserver.service import Service

if TYPE_CHECKING:
    from echoserver.conversation.tls import TlsServer


def certificate_expiry(secure: "TlsServer | None") -> float:
    """Return when the server's certificate expires, in Unix time; 0: the server has none."""
    if secure is not None:
        from echoserver.conversation.certificates import expiry  # noqa: PLC0415 - only with TLS

        with suppress(ValueError):  # OpenSSL can read the certificate, which is enough to serve
            return expiry(secure.credentials.cert)
    return 0.0


def reload_in_place(service: Service, sockets: ListeningSockets) -> bool:
    """Reload the configuration, and apply the settings that need no new process.

    Returns:
        Whether the configuration could be loaded.
    """
    log = service.log
    try:
        config, restart_options = reload_config(service.config, in_workers=False)
        plan = ServerPlan.of(config, service, log)
    except ConfigError as error:
        log.error("reload_failed", reason=str(error))
        return False
    except Exception as error:  # noqa: BLE001 - a plugin's error must not end open connections
        log.error("reload_failed", **describe_exception(error))
        return False
    before = service.config
    service.reconfigure(config, plan.make_handler, plan.secure)
    apply_reload(before, config, restart_options, sockets, service.lifecycle, log)
    return True


def apply_reload(
    before: Config,
    config: Config,
    restart_options: list[str],
    sockets: ListeningSockets,
    lifecycle: Lifecycle,
    log: Log,
) -> None:
    """Apply a new configuration to the process that listens, and log the reload.

    Args:
        before: The configuration until now.
        config: The configuration from now on.
        restart_options: The changed options that take effect after a restart only.
        sockets: The listening sockets, which workers share.
        lifecycle: The lifecycle of this process.
        log: The log of this process.
    """
    warn_if_open_to_all(before, config, sockets, log)
    lifecycle.drain_timeout = config.drain_timeout
    sockets.set_timeouts(config)
    log.set_level(config.log_level)
    if restart_options:
        log.warning("reload_incomplete", restart_for=", ".join(restart_options))
    log.info("reloaded")
