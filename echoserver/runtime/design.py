"""What a configuration comes to: the classes that its names stand for, and every check of it."""

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

_SAMPLE = 1.0  # seconds between two looks at what open connections have done

_NEW_OBJECTS = 50_000  # between two looks for cycles

# Of a reload: another user's file; a pipe, which can be read once; a mount that does not answer.
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ETIMEDOUT}


class _UnreadableError(ConfigError):
    """A file is there, and this process may not read it, or not again (`read_file`)."""


def _files_changed(one: Config, other: Config) -> bool:
    names = ("tls_cert", "tls_key", "tls_client_ca")
    return any(getattr(one, name) != getattr(other, name) for name in names)


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """A configuration, with what its names stand for."""

    config: Config
    backend: type[Backend]
    make_handler: Callable[[], Handler]
    secure: "TlsServer | None" = None

    @classmethod
    def of(
        cls, config: Config, before: "ServerPlan | Service | None" = None, log: Log | None = None
    ) -> Self:
        """Load what `config` names.

        Args:
            config: What to serve by.
            before: What is served by now. Its TLS stays where the same files may not be read any
                more, as after ``--user``: the rest of a reload need not wait for that.
            log: Where that is said.

        Raises:
            ConfigError: It cannot be loaded, or settings contradict each other.
        """
        backend = load_backend(config.backend, config.source("backend"))
        _refuse_odd_concurrency(config, backend)
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
        """Return how many connections so many processes may have open together."""
        concurrency = self.backend.concurrency(self.config)
        if concurrency is None:
            return self.process_limit()
        return min(concurrency * workers, self.config.max_connections or concurrency * workers)

    def process_limit(self) -> int:
        """Return how many connections one process may have open at a time."""
        most, concurrency = self.configured_limit(), self.backend.concurrency(self.config)
        return most if concurrency is None else min(most, concurrency)

    def configured_limit(self) -> int:
        """Return that of a backend without a bound of its own: a reload may bring one."""
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
        """Serve in this process until `lifecycle` says otherwise; return what was done."""
        service = Service(self.config, self.make_handler, lifecycle, log, resources, self.secure)
        if self.config.metrics is not None:
            lifecycle.every(_SAMPLE, service.sample)
        listener = Listener(sockets, service, lambda: ready(service))
        who = f"{self.config.source('backend')}: the backend {self.config.backend!r}"
        try:
            with _rarely_collected():
                self.backend().serve(listener, service)
        except (EchoServerError, OSError):
            if not lifecycle.killed:  # it was told to leave before it had started
                raise
        except (Exception, SystemExit) as error:
            told = ", ".join(f"{key} {text}" for key, text in describe_exception(error).items())
            raise BootError(f"{who} failed: {told}") from error
        if lifecycle.running:
            raise BootError(f"{who} stopped serving, and nobody had told it to")
        log.say_rest()
        service.publish()
        return service.totals


@contextmanager
def _rarely_collected() -> Iterator[None]:
    """Look for cycles less often, and not among what was there before.

    Connections leave none behind. To look for some after every 700 new objects, as is the
    default, is a twentieth of what a server spends on one connection per request.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def require_metrics(config: Config) -> None:
    """Refuse ``--metrics`` where the package for it is not installed.

    Raises:
        ConfigError: That is so.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigError(
            f"{config.source('metrics')} needs the package prometheus-client; "
            "pip install 'echoserver[metrics]'"
        )


def _refuse_odd_concurrency(config: Config, backend: type[Backend]) -> None:
    """Ask a plugin's class once, where it can be said whose answer is wrong."""
    asked = f"{config.source('backend')}: {config.backend}.concurrency"
    try:
        answer: Any = backend.concurrency(config)
    except Exception as error:  # noqa: BLE001 - a plugin may fail in any way
        raise ConfigError(f"{asked} failed with {type(error).__name__}: {error}") from None
    if answer is not None and (not isinstance(answer, int) or answer < 1):
        raise ConfigError(f"{asked} must be None or a whole number from 1, not {answer!r}")


def _secure(config: Config, *, reload: bool) -> "TlsServer | None":
    """Return what puts TLS over connections.

    Args:
        config: Names the files.
        reload: Clients are being served meanwhile.

    Raises:
        ConfigError: A file is missing, or not usable.
    """
    if config.tls_cert is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{config.source(name)} is of no use without --tls-cert")
        return None
    from echoserver.conversation.credentials import Credentials, CredentialsError  # noqa: PLC0415 - ssl is large
    from echoserver.conversation.tls import TlsServer  # noqa: PLC0415 - ssl is large

    try:
        found = Credentials.read(
            config.tls_cert, config.tls_key, config.tls_client_ca, reload=reload
        )
    except OSError as error:
        kind = _UnreadableError if error.errno in _UNREADABLE else ConfigError
        raise kind(f"cannot read the TLS file {error.filename}: {error.strerror}") from None
    try:
        return TlsServer(found)
    except CredentialsError as error:
        setting = {"cert": "tls_cert", "key": "tls_key", "ca": "tls_client_ca"}[error.part]
        # Where no --tls-key is given, the key is to be in the certificate's file.
        setting = setting if getattr(config, setting) else "tls_cert"
        source, file = config.source(setting), getattr(config, setting)
        raise ConfigError(f"{source}: cannot use {file}: {error}") from None


def _refuse_contradictions(config: Config, backend: type[Backend]) -> None:
    if config.overload == "shed-idle" and (local := [one for one in config.host if is_unix(one)]):
        raise ConfigError(
            f"{config.source('overload')} shed-idle: of UNIX sockets ({local[0]}), the kernel does "
            "not tell who has been silent; use queue or reject, or listen on TCP alone"
        )
    if config.proxy_protocol and not config.proxy_from:
        raise ConfigError(
            f"{config.source('proxy_protocol')} needs --proxy-from: anybody can write a header"
        )
    if config.proxy_from and not config.proxy_protocol:
        raise ConfigError(
            f"{config.source('proxy_from')} has no effect without --proxy-protocol; "
            "add it, or say with --allow who may connect"
        )
    for setting in settings():
        # Only where it was typed beside the backend: a file or an environment may hold
        # settings for several backends.
        typed = config.sources.get(setting.name) == option_name(setting.name)
        if setting.only_where_backend_reads and typed and setting.name not in backend.reads:
            raise ConfigError(
                f"{option_name(setting.name)} has no effect on the backend "
                f"{config.backend!r} ({config.source('backend')}); leave one out"
            )
    if unusable := unusable_cpus(config.affinity):
        raise ConfigError(
            f"{config.source('affinity')}: this process may not run on CPU {unusable[0]} (it may "
            f"on {', '.join(map(str, sorted(os.sched_getaffinity(0))))})"
        )
