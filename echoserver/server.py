"""A server from its configuration to its exit code: bind, serve, drain."""

import resource
import time
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from echoserver.config import Config, option_name, settings
from echoserver.errors import ConfigError
from echoserver.lifecycle import Lifecycle, in_main_thread
from echoserver.listener import Listener, bind, somaxconn
from echoserver.log import Log
from echoserver.registry import load_backend, load_handler
from echoserver.service import Service

# Descriptors that are not connections': stderr, the listener, the wake-up pipe, a loop's own.
_RESERVED_DESCRIPTORS = 64
_DEFAULT_MAX_CONNECTIONS = 10_000

EXIT_OUTPUT_OWED = 4


def serve(config: Config | None = None, **overrides: Any) -> int:
    """Serve in this process until SIGTERM or SIGINT, then drain; return the exit code.

    Args:
        config: The settings; default: all defaults.
        overrides: Settings to change in it: ``serve(backend="gevent", port=0)``.

    Returns:
        0: ended clean. 4: at the drain's deadline, a peer had not read what it was owed.
        128 + n: a second signal, of number n, ended the drain.

    Raises:
        ConfigError: A backend or handler cannot be loaded, or settings contradict each other.
        BootError: The address cannot be listened on, or threads of a pool not started.
        RuntimeError: Called outside the main thread, where Python handles no signals; `spawn`
            runs a server beside your program instead.
    """
    return EchoServer(replace(config or Config(), **overrides)).run()


class EchoServer:
    """One server, to be run once.

    Raises:
        ConfigError: A backend or handler cannot be loaded, or settings contradict each other.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._backend_class = load_backend(config.backend, config.source("backend"))
        self._handler_class = load_handler(config.handler, config.source("handler"))
        self._refuse_contradictions()

    def run(self) -> int:
        """Listen, serve until a signal, drain; return the exit code. See `serve`."""
        if not in_main_thread():
            raise RuntimeError(
                "a server handles signals, which Python allows in the main thread only; "
                "echoserver.spawn() runs one beside your program"
            )
        config = self.config
        started = time.monotonic()
        descriptors = _raise_descriptor_limit()
        log = Log(config)
        backend = self._backend_class()
        lifecycle = Lifecycle(config, self._backend_class.poll)
        sock = None
        try:
            lifecycle.install_signals()  # before the first client can connect, and someone stop us
            sock = bind(config)
            limit = self._limit(descriptors)
            service = Service(config, self._handler_class, lifecycle, log, limit)
            self._warn(log, descriptors)
            backend.serve(Listener(sock, service), service)
            code = 0
            if lifecycle.killed:
                code = 128 + lifecycle.signal
            elif service.totals.cut:
                code = EXIT_OUTPUT_OWED
            log.announce(
                "stopped",
                **asdict(service.totals),
                log_lines_dropped=log.dropped,
                seconds=round(time.monotonic() - started, 3),
                exit_code=code,
            )
        finally:
            lifecycle.close()
            if sock is not None:
                sock.close()
        return code

    def _refuse_contradictions(self) -> None:
        for setting in settings():
            # Only where it was typed beside the backend: a file or an environment may hold
            # settings for several backends.
            typed = self.config.sources.get(setting.name) == option_name(setting.name)
            if (
                setting.metadata.get("only_where_backend_reads")
                and typed
                and setting.name not in self._backend_class.reads
            ):
                raise ConfigError(
                    f"{option_name(setting.name)} has no effect on the backend "
                    f"{self.config.backend!r} ({self.config.source('backend')}); leave one out"
                )

    def _limit(self, descriptors: int) -> int:
        """Return how many connections may be open at a time."""
        limit = self.config.max_connections or max(
            1, min(_DEFAULT_MAX_CONNECTIONS, descriptors - _RESERVED_DESCRIPTORS)
        )
        concurrency = self._backend_class.concurrency(self.config)
        return limit if concurrency is None else min(limit, concurrency)

    def _warn(self, log: Log, descriptors: int) -> None:
        for warning in self.config.warnings:
            log.warning("setting_ignored", reason=warning)
        cap = somaxconn()
        if cap is not None and cap < self.config.backlog:
            log.warning(
                "backlog_capped",
                backlog=self.config.backlog,
                somaxconn=cap,
                advice=f"sysctl -w net.core.somaxconn={self.config.backlog}",
            )
        wanted = self.config.max_connections or 0
        if wanted > descriptors:
            log.warning(
                "descriptors_scarce",
                max_connections=wanted,
                descriptors=descriptors,
                advice="raise the hard limit (ulimit -Hn)",
            )


def _raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; return what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
