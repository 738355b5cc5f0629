"""The sidecars of a server: its exporter, its access log, and its service manager.

All of them may fail, hang or be missing, and the server still serves.
"""

import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from echoserver.addresses import parse_endpoint
from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.config import Config
from echoserver.errors import BootError
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.access_log import AccessLog
from echoserver.monitoring.helper_process import SupervisedHelper
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.system.privileges import Identity
from echoserver.system.systemd import Notifier

if TYPE_CHECKING:
    from echoserver.monitoring.exporter import Exporter

_POLL_INTERVAL = 1.0  # seconds
_WRITER_STOP_TIMEOUT = 2.0  # seconds to write the remaining lines of the access log
_WATCHDOG_BEATS = 3  # per period of the service manager's watchdog


class Sidecars:
    """The sidecars of one server.

    They are opened and started while the server still has its privileges, and one thread only.

    Args:
        config: The configuration, which says which sidecars are wanted.
        sockets: The listening sockets.
        log: Where sidecars that do not work are logged.
        identity: The identity that helper processes switch to.

    Raises:
        BootError: The access log cannot be opened, or the host of --metrics cannot be resolved.
    """

    def __init__(
        self, config: Config, sockets: ListeningSockets, log: Log, identity: Identity | None
    ) -> None:
        self._sockets, self._log = sockets, log
        self._identity = identity
        self._notifier = Notifier()
        self._scoreboard: Scoreboard | None = None
        self._helpers: dict[str, SupervisedHelper] = {}
        self._exporter: Exporter | None = None
        self._access: AccessLog | None = None
        self._lifecycle: Lifecycle | None = None
        self._stopping = False
        if config.metrics is not None:
            from echoserver.monitoring import exporter  # noqa: PLC0415 - an HTTP server takes long to import

            try:
                self._exporter = exporter.Exporter(parse_endpoint(config.metrics), time.time())
            except (socket.gaierror, UnicodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise BootError(
                    f"{config.source('metrics')}: cannot resolve {config.metrics}: {reason}"
                ) from None
            if self._exporter.problem:
                log.error(
                    "metrics_unavailable",
                    address=config.metrics,
                    reason=self._exporter.problem,
                    advice="the server serves without metrics, and tries the address every second",
                )
        if config.access_log is not None:
            self._access = AccessLog(config.access_log, identity)

    @property
    def access_log(self) -> AccessLog | None:
        """The access log; None: there is none."""
        return self._access

    def start(self, scoreboard: Scoreboard, lifecycle: Lifecycle) -> None:
        """Start the helper processes, and their supervision.

        Args:
            scoreboard: Where the serving processes publish their counters.
            lifecycle: The lifecycle of the calling process.
        """
        self._scoreboard, self._lifecycle = scoreboard, lifecycle
        if self._access is not None:
            self._helpers["access_log"] = SupervisedHelper(
                "access_log", partial(self._access.start, scoreboard, self._log), self._log
            )
        if self._exporter is not None:
            self._helpers["metrics"] = SupervisedHelper(
                "metrics", partial(self._exporter.start, scoreboard, self._identity), self._log
            )
        if self._helpers:
            lifecycle.every(_POLL_INTERVAL, self._supervise)
        if self._notifier.watchdog:
            lifecycle.every(self._notifier.watchdog / _WATCHDOG_BEATS, self._notifier.alive)
        lifecycle.on_wake(self._report_drain)

    def metrics_address(self) -> dict[str, int]:
        """Return the exporter's port, as a detail of the ``listening`` line."""
        if self._exporter is None or self._exporter.problem:
            return {}
        return {"metrics_port": self._exporter.port}

    def ready(self) -> None:
        """Tell the service manager that the server serves, at the start or after a reload."""
        self._notifier.ready(f"serving on {', '.join(self._sockets.display_addresses)}")

    def reloading(self) -> None:
        """Tell the service manager of a reload, and reopen the access log."""
        self._notifier.reloading()
        if "access_log" in self._helpers:
            self._helpers["access_log"].send_signal(signal.SIGHUP)
        if self._access is not None:
            self._access.reopen()

    def become_worker(self) -> None:
        """Close what is kept open for helper processes, in a worker, which starts none."""
        if self._access is not None:
            self._access.release()
        if self._exporter is not None:
            self._exporter.become_worker()

    def close(self) -> None:
        """Stop all sidecars, the exporter last."""
        if self._access is not None and "access_log" in self._helpers:
            writer = self._helpers["access_log"]
            self._access.close()
            # A writer that had died may have left lines in the pipe.
            if writer.stop(_WRITER_STOP_TIMEOUT) and self._access.has_pending_lines:
                writer.ensure_running()
                writer.stop(_WRITER_STOP_TIMEOUT)
            self._access.release()
        if self._exporter is not None and "metrics" in self._helpers:
            self._exporter.stop(self._helpers["metrics"])
        self._notifier.close()

    def _supervise(self) -> None:
        if self._scoreboard is not None and self._lifecycle is not None and self._lifecycle.running:
            self._scoreboard.set_queue(*self._sockets.queue())
        for helper in self._helpers.values():
            helper.supervise()

    def _report_drain(self) -> None:
        if self._scoreboard is None or self._lifecycle is None or self._lifecycle.running:
            return
        if not self._stopping:  # not `everyone_drains`, which a master may have set already
            self._stopping = True
            self._scoreboard.drain_everyone()
            self._notifier.stopping()
