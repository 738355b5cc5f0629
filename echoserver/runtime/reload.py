"""Reading the configuration again, while the server serves."""

from contextlib import suppress
from typing import TYPE_CHECKING

from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.config import Config, reload_config
from echoserver.conversation.failures import describe_exception
from echoserver.errors import ConfigError
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.log import Log
from echoserver.runtime.announcements import warn_if_opened
from echoserver.runtime.design import ServerPlan
from echoserver.service import Service

if TYPE_CHECKING:
    from echoserver.conversation.tls import TlsServer


def certificate_expiry(secure: "TlsServer | None") -> float:
    """Return when the certificate expires that is served with, in Unix time; 0: there is none."""
    if secure is not None:
        from echoserver.conversation.certificates import expiry  # noqa: PLC0415 - only with TLS

        with suppress(ValueError):  # OpenSSL can read it, and that is enough to serve
            return expiry(secure.credentials.cert)
    return 0.0


def reload_in_place(service: Service, sockets: ListeningSockets) -> bool:
    """Read the configuration again, and serve by what can be changed without a new process.

    Returns:
        Whether it could be read.
    """
    log = service.log
    try:
        config, waiting = reload_config(service.config, in_workers=False)
        design = ServerPlan.of(config, service, log)
    except ConfigError as error:
        log.error("reload_failed", reason=str(error))
        return False
    except Exception as error:  # noqa: BLE001 - a plugin's; connections that are open stay open
        log.error("reload_failed", **describe_exception(error))
        return False
    before = service.config
    service.reconfigure(config, design.make_handler, design.secure)
    apply_reload(before, config, waiting, sockets, service.lifecycle, log)
    return True


def apply_reload(
    before: Config,
    config: Config,
    waiting: list[str],
    sockets: ListeningSockets,
    lifecycle: Lifecycle,
    log: Log,
) -> None:
    """Let what was read again hold in the process that listens, and say so.

    Args:
        before: What held until now.
        config: What holds from now on.
        waiting: The options of it that cannot take effect.
        sockets: The listening sockets, which workers share.
        lifecycle: Of this process.
        log: Of this process.
    """
    warn_if_opened(before, config, sockets, log)
    lifecycle.drain_timeout = config.drain_timeout
    sockets.set_timeouts(config)
    log.set_level(config.log_level)
    if waiting:
        log.warning("reload_incomplete", restart_for=", ".join(waiting))
    log.info("reloaded")
