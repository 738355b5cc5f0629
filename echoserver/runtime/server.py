"""A server from its configuration to its exit code: bind, serve, drain."""

import errno
import gc
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

from echoserver.addresses import EVERY_ADDRESS, is_unix, parse_endpoint
from echoserver.admission.binding import ListeningSockets, bind, resolve, somaxconn
from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.config import Config, option_name, reread, settings
from echoserver.conversation.failures import what_failed
from echoserver.errors import BootError, ConfigError, EchoServerError
from echoserver.handlers import Handler
from echoserver.handlers.options import bind_options
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.lifecycle.state import in_main_thread, remaining_threads
from echoserver.monitoring.counters import Totals
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.registry import load_backend, load_handler
from echoserver.runtime.sidecars import Sidecars
from echoserver.service import Resources, Service
from echoserver.service.quota import LocalQuota, address_of
from echoserver.service.slots import LocalSlots
from echoserver.system.cpus import pin, unusable_cpus
from echoserver.system.privileges import Identity
from echoserver.system.processes import Strays
from echoserver.system.sockets import spelled

if TYPE_CHECKING:
    from echoserver.conversation.tls import TlsServer

# Descriptors that are not connections': stderr, listeners, the wake-up pipe, a loop's own. Where
# there are few, half of them.
_RESERVED_DESCRIPTORS = 64
# With all that may stand beside a server, a worker holds up to 18, and more while it starts.
_LEAST_DESCRIPTORS = 32
_FEW_CONNECTIONS = 256
_DEFAULT_MAX_CONNECTIONS = 10_000

_SAMPLE = 1.0  # seconds between two looks at what open connections have done
_REAP = 1.0  # seconds between two looks for strays, as process 1

_NEW_OBJECTS = 50_000  # between two looks for cycles

EXIT_OUTPUT_OWED = 4

# Of a reload: another user's file; a pipe, which can be read once; a mount that does not answer.
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ETIMEDOUT}


def serve(config: Config | None = None, **overrides: Any) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return the exit code.

    Args:
        config: The settings; default: all defaults.
        overrides: Settings to change in it: ``serve(backend="gevent", port=0)``.

    Returns:
        0: ended clean. 4: at the drain's deadline, a peer had not read what it was owed.
        128 + n: a second signal, of number n, ended the drain.

    Raises:
        ConfigError: A backend or handler cannot be loaded, or settings contradict each other.
        BootError: The address cannot be listened on, what is to serve cannot be started, or the
            backend failed.
        RuntimeError: Called outside the main thread, where Python handles no signals; `spawn`
            runs a server beside your program instead.
    """
    return EchoServer(replace(config or Config(), **overrides)).run()


class _UnreadableError(ConfigError):
    """A file is there, and this process may not read it, or not again (`read_file`)."""


def _files_changed(one: Config, other: Config) -> bool:
    names = ("tls_cert", "tls_key", "tls_client_ca")
    return any(getattr(one, name) != getattr(other, name) for name in names)


@dataclass(frozen=True, slots=True)
class Design:
    """A configuration, with what its names stand for."""

    config: Config
    backend: type[Backend]
    make_handler: Callable[[], Handler]
    secure: "TlsServer | None" = None

    @classmethod
    def of(
        cls, config: Config, before: "Design | Service | None" = None, log: Log | None = None
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

    def limit_of_all(self, workers: int) -> int:
        """Return how many connections so many processes may have open together."""
        concurrency = self.backend.concurrency(self.config)
        if concurrency is None:
            return self.limit()
        return min(concurrency * workers, self.config.max_connections or concurrency * workers)

    def limit(self) -> int:
        """Return how many connections one process may have open at a time."""
        most, concurrency = self.most(), self.backend.concurrency(self.config)
        return most if concurrency is None else min(most, concurrency)

    def most(self) -> int:
        """Return that of a backend without a bound of its own: a reload may bring one."""
        return self.config.max_connections or min(
            _DEFAULT_MAX_CONNECTIONS, _for_connections(raise_descriptor_limit())
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
            told = ", ".join(f"{key} {text}" for key, text in what_failed(error).items())
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


class EchoServer:
    """One server, to be run once.

    Raises:
        ConfigError: A backend or handler cannot be loaded, or settings contradict each other.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._identity = Identity.of(config)
        if config.metrics is not None:
            _require_metrics(config)
        self._design = Design.of(config)

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
        if descriptors < _LEAST_DESCRIPTORS:
            raise BootError(
                f"this process may open {descriptors} files, and needs {_LEAST_DESCRIPTORS} at "
                "least; raise the limit (ulimit -n, and ulimit -Hn)"
            )
        addresses = resolve(config)
        threads = remaining_threads()
        log = Log(config)
        lifecycle = Lifecycle(config)
        sockets = sidecars = None
        started = time.monotonic()
        try:
            lifecycle.on_forced_end(lambda: _log_forced_end(lifecycle, log))
            # Before the first client can connect, and someone stop us.
            lifecycle.install_signals()
            if os.getpid() == 1:
                lifecycle.every(_REAP, Strays().collect)
            sockets = bind(config, addresses, self._identity)
            lifecycle.on_forced_end(sockets.remove_files)
            _refuse_own_port(config, sockets)
            sidecars = Sidecars(config, sockets, log, self._identity)
            scoreboard = Scoreboard.of(config)
            scoreboard.certificate_expiry = certificate_expiry(self._design.secure)
            sidecars.start(scoreboard, lifecycle)
            if self._identity is not None:
                self._identity.assume()
            _warn(config, sockets, log, descriptors)
            if config.workers is not None:
                from echoserver.runtime.master import Master

                totals = Master(self._design, sockets, lifecycle, log, scoreboard, sidecars).run()
            else:
                totals = self._serve_alone(sockets, lifecycle, log, scoreboard, sidecars)
            code = exit_code(lifecycle, totals)
            log.say_rest()
            if left := remaining_threads() - threads:
                log.warning(
                    "threads_left",
                    threads=sorted(one.name for one in left),
                    advice="the process ends without them; a handler or backend that starts "
                    "threads ends them, or makes them daemons",
                )
            log.announce(
                "stopped",
                **asdict(totals),
                log_lines_dropped=log.dropped,
                seconds=round(time.monotonic() - started, 3),
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

    def _serve_alone(
        self,
        sockets: ListeningSockets,
        lifecycle: Lifecycle,
        log: Log,
        scoreboard: Scoreboard,
        sidecars: Sidecars,
    ) -> Totals:
        pin(self.config.affinity, 0)
        place = scoreboard.reserve(1)
        resources = Resources(LocalSlots(self._design.limit()), LocalQuota(), sidecars.access_log)
        if self.config.metrics is not None:
            resources.publish = lambda service: scoreboard.write(
                place, service.vitals, service.totals
            )
            # Whoever serves one client at a time has no time to look every second.
            resources.promptly = self._design.limit() == 1

        def reload(service: Service) -> None:
            sidecars.reloading()
            scoreboard.note_reload(successful=reload_in_place(service, sockets))
            scoreboard.certificate_expiry = certificate_expiry(service.secure)
            sidecars.ready()

        def ready(service: Service) -> None:
            lifecycle.on_hangup(lambda: reload(service))
            scoreboard.tell_serving(place)
            announce(self.config, sockets, log, **sidecars.metrics_address())
            sidecars.ready()

        return self._design.serve(sockets, lifecycle, log, resources, ready)


def certificate_expiry(secure: "TlsServer | None") -> float:
    """Return when the certificate expires that is served with, in Unix time; 0: there is none."""
    if secure is not None:
        from echoserver.conversation.certificates import expiry

        with suppress(ValueError):  # OpenSSL can read it, and that is enough to serve
            return expiry(secure.credentials.cert)
    return 0.0


def announce(config: Config, sockets: ListeningSockets, log: Log, **more: Any) -> None:
    """Say that the server serves: whoever reads this line can connect.

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


def _log_forced_end(lifecycle: Lifecycle, log: Log) -> None:
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


def reload_in_place(service: Service, sockets: ListeningSockets) -> bool:
    """Read the configuration again, and serve by what can be changed without a new process.

    Returns:
        Whether it could be read.
    """
    log = service.log
    try:
        config, waiting = reread(service.config, in_workers=False)
        design = Design.of(config, service, log)
    except ConfigError as error:
        log.error("reload_failed", reason=str(error))
        return False
    except Exception as error:  # noqa: BLE001 - a plugin's; whoever is served stays served
        log.error("reload_failed", **what_failed(error))
        return False
    before = service.config
    service.reconfigure(config, design.make_handler, design.secure)
    take_effect(before, config, waiting, sockets, service.lifecycle, log)
    return True


def take_effect(
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
    _warn_if_opened(before, config, sockets, log)
    lifecycle.drain_timeout = config.drain_timeout
    sockets.set_timeouts(config)
    log.set_level(config.log_level)
    if waiting:
        log.warning("reload_incomplete", restart_for=", ".join(waiting))
    log.info("reloaded")


def _require_metrics(config: Config) -> None:
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
    from echoserver.conversation.tls import Credentials, CredentialsError, TlsServer

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
        if (
            setting.metadata.get("only_where_backend_reads")
            and typed
            and setting.name not in backend.reads
        ):
            raise ConfigError(
                f"{option_name(setting.name)} has no effect on the backend "
                f"{config.backend!r} ({config.source('backend')}); leave one out"
            )
    if unusable := unusable_cpus(config.affinity):
        raise ConfigError(
            f"{config.source('affinity')}: this process may not run on CPU {unusable[0]} (it may "
            f"on {', '.join(map(str, sorted(os.sched_getaffinity(0))))})"
        )


def _refuse_own_port(config: Config, sockets: ListeningSockets) -> None:
    if config.metrics is None:
        return
    host, port = parse_endpoint(config.metrics)
    for own_host, own_port in sockets.addresses:
        same = spelled(host) == spelled(own_host) or own_host in EVERY_ADDRESS
        if port and port == own_port and same:
            raise ConfigError(
                f"{config.source('metrics')} is the server's own port; choose another"
            )


def _warn_if_opened(
    before: Config | None, config: Config, sockets: ListeningSockets, log: Log
) -> None:
    """Say that everybody is let in now, where that is so, and was not before."""
    known = before is not None and not _guarded(before)
    reached = [host for host, _ in sockets.addresses if not _local(host)]
    if reached and not (known or _guarded(config)):
        log.warning(
            "open_to_all",
            host=spelled(reached[0]),
            advice="whoever reaches this address can use the server; --allow says who may, and "
            "--tls-cert with --tls-client-ca asks for proof",
        )


def _local(host: str) -> bool:
    return is_unix(host) or address_of(host).is_loopback


def _guarded(config: Config) -> bool:
    return bool(config.tls_cert or config.allow or config.proxy_protocol)


def _warn(config: Config, sockets: ListeningSockets, log: Log, descriptors: int) -> None:
    _warn_if_opened(None, config, sockets, log)
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
    room = _for_connections(descriptors)
    if (config.max_connections or _FEW_CONNECTIONS) > room:
        log.warning(
            "descriptors_scarce",
            max_connections=config.max_connections or room,
            descriptors=descriptors,
            advice=f"there are descriptors for {room} connections at a time; raise the hard limit "
            "(ulimit -Hn)",
        )


def _for_connections(descriptors: int) -> int:
    """Return how many of so many descriptors connections may have."""
    return descriptors - min(_RESERVED_DESCRIPTORS, descriptors // 2)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; return what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
