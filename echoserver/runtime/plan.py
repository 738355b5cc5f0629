"""A server's plan: its configuration, checked, with the classes that it names."""

import errno
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

from echoserver.addresses import is_unix
from echoserver.admission.listener import Listener
from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.backends import Backend
from echoserver.config import Config, option_name, settings
from echoserver.conversation.failures import describe_exception
from echoserver.errors import BootError, ConfigError, EchoServerError
from echoserver.handlers import Handler
from echoserver.handlers.options import bind_options
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.counters import Totals
from echoserver.monitoring.log import Log
from echoserver.registry import load_backend, load_handler
from echoserver.service import Service
from echoserver.service.resources import Resources
from echoserver.system.cpus import unusable_cpus
from echoserver.system.descriptors import raise_descriptor_limit, room_for_connections

if TYPE_CHECKING:
    from echoserver.conversation.tls import TlsServer

_DEFAULT_MAX_CONNECTIONS = 10_000

_SAMPLE_INTERVAL = 1.0  # seconds between two samples of open connections for the metrics

_COLLECTION_THRESHOLD = 50_000  # new objects between two runs of the garbage collector

# Errors of a reload: another user's file; a pipe, which can be read once only; a mount that does
# not answer.
_UNREADABLE_ERRORS = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ETIMEDOUT}


class _UnreadableError(ConfigError):
    """A file exists, but this process cannot read it now, or cannot read it twice (`read_file`)."""


def _files_changed(one: Config, other: Config) -> bool:
    names = ("tls_cert", "tls_key", "tls_client_ca")
    return any(getattr(one, name) != getattr(other, name) for name in names)


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """A configuration, together with the classes and credentials that it names."""

    config: Config
    backend: type[Backend]
    make_handler: Callable[[], Handler]
    secure: "TlsServer | None" = None

    @classmethod
    def of(
        cls, config: Config, before: "ServerPlan | Service | None" = None, log: Log | None = None
    ) -> Self:
        """Load the backend, handler and credentials that `config` names.

        Args:
            config: The configuration to serve by.
            before: The plan or service that a reload replaces. Its TLS credentials stay in use if
                the same files cannot be read any more, as after ``--user``, so that the rest of
                the reload takes effect.
            log: Where a reload without new credentials is logged.

        Raises:
            ConfigError: Something cannot be loaded, or settings contradict each other.
        """
        backend = load_backend(config.backend, config.source("backend"))
        _check_concurrency(config, backend)
        handler = load_handler(config.handler, config.source("handler"))
        options, source = config.handler_option, config.source("handler_option")
        _refuse_contradictions(config, backend)
        try:
            secure = _secure(config, reload=before is not None)
        except _UnreadableError as error:
            if log is None or before is None or before.secure is None:
                raise
            if _files_changed(config, before.config):
                raise
            secure = before.secure
            log.error("certificate_not_reloaded", reason=str(error))
        return cls(config, backend, bind_options(handler, options, source), secure)

    def total_limit(self, workers: int) -> int:
        """Return how many connections `workers` processes may have open together."""
        concurrency = self.backend.concurrency(self.config)
        if concurrency is None:
            return self.process_limit()
        return min(concurrency * workers, self.config.max_connections or concurrency * workers)

    def process_limit(self) -> int:
        """Return how many connections one process may have open at a time."""
        limit, concurrency = self.configured_limit(), self.backend.concurrency(self.config)
        return limit if concurrency is None else min(limit, concurrency)

    def configured_limit(self) -> int:
        """Return the limit for a backend without a limit of its own, which a reload may bring."""
        return self.config.max_connections or min(
            _DEFAULT_MAX_CONNECTIONS, room_for_connections(raise_descriptor_limit())
        )

    def serve(
        self,
        sockets: ListeningSockets,
        lifecycle: Lifecycle,
        log: Log,
        resources: Resources,
        ready: Callable[[Service], None],
    ) -> Totals:
        """Serve in this process until `lifecycle` ends it; return the totals."""
        service = Service(self.config, self.make_handler, lifecycle, log, resources, self.secure)
        if self.config.metrics is not None:
            lifecycle.every(_SAMPLE_INTERVAL, service.sample)
        listener = Listener(sockets, service, lambda: ready(service))
        subject = f"{self.config.source('backend')}: the backend {self.config.backend!r}"
        try:
            with _rare_collection():
                self.backend().serve(listener, service)
        except (EchoServerError, OSError):
            if not lifecycle.killed:  # if so, it was aborted before it had started
                raise
        except (Exception, SystemExit) as error:
            details = describe_exception(error).items()
            text = ", ".join(f"{key} {value}" for key, value in details)
            raise BootError(f"{subject} failed: {text}") from error
        if lifecycle.running:
            raise BootError(f"{subject} stopped serving without having been told to")
        log.flush_repeats()
        service.publish()
        return service.totals


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Run the garbage collector rarely, and without the objects that exist already.

    Connections leave no reference cycles behind. With the default threshold of 700 new objects,
    looking for cycles is a twentieth of what a server spends on one connection per request.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_COLLECTION_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def require_metrics(config: Config) -> None:
    """Refuse ``--metrics`` if the package prometheus-client is not installed.

    Raises:
        ConfigError: The package is not installed.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigError(
            f"{config.source('metrics')} needs the package prometheus-client; "
            "pip install 'echoserver[metrics]'"
        )


def _check_concurrency(config: Config, backend: type[Backend]) -> None:
    """Check a backend's `concurrency` once, while the error can still name the setting."""
    method = f"{config.source('backend')}: {config.backend}.concurrency"
    try:
        limit: Any = backend.concurrency(config)
    except Exception as error:  # noqa: BLE001 - a plugin may fail in any way
        raise ConfigError(f"{method} failed with {type(error).__name__}: {error}") from None
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"{method} must be None or a whole number from 1, not {limit!r}")


def _secure(config: Config, *, reload: bool) -> "TlsServer | None":
    """Return the TLS side of the server, or None if it does not serve TLS.

    Args:
        config: The configuration, which names the files.
        reload: Clients are being served meanwhile.

    Raises:
        ConfigError: A file is missing or not usable.
    """
    if config.tls_cert is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{config.source(name)} is of no use without --tls-cert")
        return None
    from echoserver.conversation.credentials import Credentials, CredentialsError  # noqa: PLC0415 - ssl is large
    from echoserver.conversation.tls import TlsServer  # noqa: PLC0415 - ssl is large

    try:
        credentials = Credentials.read(
            config.tls_cert, config.tls_key, config.tls_client_ca, reload=reload
        )
    except OSError as error:
        kind = _UnreadableError if error.errno in _UNREADABLE_ERRORS else ConfigError
        raise kind(f"cannot read the TLS file {error.filename}: {error.strerror}") from None
    try:
        return TlsServer(credentials)
    except CredentialsError as error:
        setting = {"cert": "tls_cert", "key": "tls_key", "ca": "tls_client_ca"}[error.part]
        # Without --tls-key, the key must be in the certificate's file.
        setting = setting if getattr(config, setting) else "tls_cert"
        source, file = config.source(setting), getattr(config, setting)
        raise ConfigError(f"{source}: cannot use {file}: {error}") from None


def _refuse_contradictions(config: Config, backend: type[Backend]) -> None:
    if config.overload == "shed-idle" and (local := [one for one in config.host if is_unix(one)]):
        raise ConfigError(
            f"{config.source('overload')} shed-idle: the kernel does not tell which clients of a "
            f"UNIX socket ({local[0]}) have been silent; use queue or reject, or listen on TCP only"
        )
    if config.proxy_protocol and not config.proxy_from:
        raise ConfigError(
            f"{config.source('proxy_protocol')} needs --proxy-from, because any client can forge a "
            "header"
        )
    if config.proxy_from and not config.proxy_protocol:
        raise ConfigError(
            f"{config.source('proxy_from')} has no effect without --proxy-protocol; "
            "add it, or restrict clients with --allow"
        )
    for setting in settings():
        # Refused only on the command line: a file or an environment may hold settings for several
        # backends.
        is_option = config.sources.get(setting.name) == option_name(setting.name)
        if setting.only_where_backend_reads and is_option and setting.name not in backend.reads:
            raise ConfigError(
                f"{option_name(setting.name)} has no effect on the backend "
                f"{config.backend!r} ({config.source('backend')}); leave one out"
            )
    if unusable := unusable_cpus(config.affinity):
        raise ConfigError(
            f"{config.source('affinity')}: this process may not run on CPU {unusable[0]} (it may "
            f"on {', '.join(map(str, sorted(os.sched_getaffinity(0))))})"
        )
