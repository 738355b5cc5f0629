"""What stands beside a server that serves: monitoring, the access log, the service manager.

All of it may fail, hang or be missing, and the server serves.
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
_LAST_LINES = 2.0  # seconds to write down what is left of the access log
_BEATS = 3  # in the time within which a watchdog wants one


class Sidecars:
    """Opened and started while the server may do anything, and has one thread.

    Args:
        config: Says which of them are wanted.
        sockets: The listening sockets.
        log: Where to tell of what is missing.
        identity: Whom they are to become.

    Raises:
        BootError: The access log cannot be opened, or the host of --metrics not be resolved.
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
            from echoserver.monitoring import exporter  # noqa: PLC0415 - an HTTP server is much to import

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
                    advice="the server serves without; the address is tried again every second",
                )
        if config.access_log is not None:
            self._access = AccessLog(config.access_log, identity)

    @property
    def access_log(self) -> AccessLog | None:
        """Where to write how connections went; None: nowhere."""
        return self._access

    def start(self, scoreboard: Scoreboard, lifecycle: Lifecycle) -> None:
        """Begin.

        Args:
            scoreboard: Where those that serve say how they fare.
            lifecycle: The calling process's.
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
            lifecycle.every(_POLL_INTERVAL, self._look)
        if self._notifier.watchdog:
            lifecycle.every(self._notifier.watchdog / _BEATS, self._notifier.alive)
        lifecycle.on_wake(self._notice_drain)

    def metrics_address(self) -> dict[str, int]:
        """Return what is to be said of where the metrics are."""
        if self._exporter is None or self._exporter.problem:
            return {}
        return {"metrics_port": self._exporter.port}

    def ready(self) -> None:
        """The server serves, or goes on serving after a reload."""
        self._notifier.ready(f"serving on {', '.join(self._sockets.shown)}")

    def reloading(self) -> None:
        """It reads its configuration again: time for a new file, too."""
        self._notifier.reloading()
        if "access_log" in self._helpers:
            self._helpers["access_log"].tell(signal.SIGHUP)
        if self._access is not None:
            self._access.reopen()

    def become_worker(self) -> None:
        """In a forked worker, which starts no helper: close what is kept open for one."""
        if self._access is not None:
            self._access.release()
        if self._exporter is not None:
            self._exporter.become_worker()

    def close(self) -> None:
        """Stop, the metrics last."""
        if self._access is not None and "access_log" in self._helpers:
            writer = self._helpers["access_log"]
            self._access.close()
            if writer.stop(_LAST_LINES) and self._access.has_unwritten:  # it had died
                writer.ensure_running()
                writer.stop(_LAST_LINES)
            self._access.release()
        if self._exporter is not None and "metrics" in self._helpers:
            self._exporter.stop(self._helpers["metrics"])
        self._notifier.close()

    def _look(self) -> None:
        if self._scoreboard is not None and self._lifecycle is not None and self._lifecycle.running:
            self._scoreboard.set_queue(*self._sockets.queue())
        for helper in self._helpers.values():
            helper.supervise()

    def _notice_drain(self) -> None:
        if self._scoreboard is None or self._lifecycle is None or self._lifecycle.running:
            return
        if not self._stopping:  # a master may have told the workers before it looks here
            self._stopping = True
            self._scoreboard.drain_everyone()
            self._notifier.stopping()
