"""A server from its configuration to its exit code: bind, serve, drain."""

import os
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from echoserver.addresses import EVERY_ADDRESS, parse_endpoint
from echoserver.admission.binding import bind
from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.admission.resolution import resolve
from echoserver.config import Config
from echoserver.errors import BootError, ConfigError
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.lifecycle.state import in_main_thread, remaining_threads
from echoserver.monitoring.counters import Totals
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.runtime.announcements import announce, exit_code, log_forced_end, warn_at_start
from echoserver.runtime.components import ServerComponents
from echoserver.runtime.plan import ServerPlan, require_metrics
from echoserver.runtime.reload import certificate_expiry, reload_in_place
from echoserver.runtime.sidecars import Sidecars
from echoserver.service import Service
from echoserver.service.quota import LocalQuota
from echoserver.service.resources import Resources
from echoserver.service.slots import LocalSlots
from echoserver.system.cpus import pin
from echoserver.system.descriptors import raise_descriptor_limit
from echoserver.system.privileges import Identity
from echoserver.system.processes import OrphanReaper
from echoserver.system.sockets import canonical_host

# With all sidecars, a worker holds up to 18 descriptors, and more while it starts.
_MIN_DESCRIPTORS = 32

_REAP_INTERVAL = 1.0  # seconds between two rounds of reaping orphans, as process 1


def serve(config: Config | None = None, **overrides: Any) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return the exit code.

    Args:
        config: The configuration; default: all defaults.
        overrides: Settings to change in it: ``serve(backend="gevent", port=0)``.

    Returns:
        0: a clean end. 4: at the drain's deadline, a peer had not read what it was owed.
        128 + n: a second signal, with number n, ended the drain.

    Raises:
        ConfigError: A backend or handler cannot be loaded, or settings contradict each other.
        BootError: The server cannot listen on an address, or cannot start its threads or workers;
            or the backend failed.
        RuntimeError: Called outside the main thread, where Python handles no signals; `spawn`
            runs a server beside your program instead.
    """
    return EchoServer(replace(config or Config(), **overrides)).run()


class EchoServer:
    """One server, which can be run once.

    Raises:
        ConfigError: A backend or handler cannot be loaded, or settings contradict each other.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._identity = Identity.of(config.user, config.group, config.source)
        if config.metrics is not None:
            require_metrics(config)
        self._plan = ServerPlan.of(config)

    def run(self) -> int:
        """Listen, serve until a signal, drain; return the exit code. See `serve`."""
        if not in_main_thread():
            raise RuntimeError(
                "a server handles signals, which Python allows in the main thread only; "
                "echoserver.spawn() runs one beside your program"
            )
        try:
            return self._run()
        except OSError as error:
            raise BootError(f"cannot go on: {error.strerror or error}") from None

    def _run(self) -> int:
        config = self.config
        descriptors = raise_descriptor_limit()
        if descriptors < _MIN_DESCRIPTORS:
            raise BootError(
                f"this process may open {descriptors} files, and needs {_MIN_DESCRIPTORS} at "
                "least; raise the limit (ulimit -n, and ulimit -Hn)"
            )
        addresses = resolve(config)
        threads = remaining_threads()
        log = Log(config)
        lifecycle = Lifecycle(config.drain_timeout, config.lifeline)
        sockets = sidecars = None
        start_time = time.monotonic()
        try:
            lifecycle.on_forced_end(lambda: log_forced_end(lifecycle, log))
            # Before clients can connect, and before anybody can want to stop the server.
            lifecycle.install_signals()
            if os.getpid() == 1:
                lifecycle.every(_REAP_INTERVAL, OrphanReaper().collect)
            sockets = bind(config, addresses, self._identity)
            lifecycle.on_forced_end(sockets.remove_files)
            _refuse_own_port(config, sockets)
            sidecars = Sidecars(config, sockets, log, self._identity)
            scoreboard = Scoreboard.of(config)
            scoreboard.certificate_expiry = certificate_expiry(self._plan.secure)
            sidecars.start(scoreboard, lifecycle)
            if self._identity is not None:
                self._identity.assume()
            warn_at_start(config, sockets, log, descriptors)
            components = ServerComponents(self._plan, sockets, lifecycle, log, scoreboard, sidecars)
            if config.workers is not None:
                from echoserver.runtime.master import Master  # noqa: PLC0415 - only with workers

                totals = Master(components).run()
            else:
                totals = self._serve_alone(components)
            code = exit_code(lifecycle, totals)
            log.flush_repeats()
            _warn_of_threads(remaining_threads() - threads, log)
            log.announce(
                "stopped",
                **asdict(totals),
                log_lines_dropped=log.dropped,
                seconds=round(time.monotonic() - start_time, 3),
                exit_code=code,
            )
        finally:
            if sidecars is not None:
                sidecars.close()
            lifecycle.close()
            if sockets is not None:
                sockets.close()
            log.close()
        return code

    def _serve_alone(self, components: ServerComponents) -> Totals:
        sockets, lifecycle, log = components.sockets, components.lifecycle, components.log
        scoreboard, sidecars = components.scoreboard, components.sidecars
        pin(self.config.affinity, 0)
        place = scoreboard.reserve(1)
        limit = self._plan.process_limit()
        resources = Resources(LocalSlots(limit), LocalQuota(), sidecars.access_log)
        if self.config.metrics is not None:
            resources.publish = partial(scoreboard.write, place)
            # A backend that serves one client at a time cannot publish every second meanwhile.
            resources.promptly = limit == 1

        def reload(service: Service) -> None:
            sidecars.reloading()
            scoreboard.record_reload(successful=reload_in_place(service, sockets))
            scoreboard.certificate_expiry = certificate_expiry(service.secure)
            sidecars.ready()

        def ready(service: Service) -> None:
            lifecycle.on_hangup(lambda: reload(service))
            scoreboard.mark_serving(place)
            announce(self.config, sockets, log, **sidecars.metrics_address())
            sidecars.ready()

        return self._plan.serve(sockets, lifecycle, log, resources, ready)


def _warn_of_threads(threads: set[Any], log: Log) -> None:
    if threads:
        log.warning(
            "threads_left",
            threads=sorted(thread.name for thread in threads),
            advice="the process ends without them; a handler or backend that starts threads ends "
            "them, or makes them daemons",
        )


def _refuse_own_port(config: Config, sockets: ListeningSockets) -> None:
    if config.metrics is None:
        return
    host, port = parse_endpoint(config.metrics)
    for own_host, own_port in sockets.addresses:
        same = canonical_host(host) == canonical_host(own_host) or own_host in EVERY_ADDRESS
        if port and port == own_port and same:
            raise ConfigError(
                f"{config.source('metrics')} is the server's own port; choose another"
            )
