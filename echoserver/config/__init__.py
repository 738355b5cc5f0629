"""Every setting of the server: named, explained and checked once, whatever it is read from.

A value comes from, in this order: the option on the command line, the environment's
``ECHOSERVER_<OPTION>``, the file named by ``--config``, the default.
"""

import ipaddress
import os
import re
from collections.abc import Callable, ItemsView, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from echoserver.addresses import parse_endpoint, parse_host
from echoserver.errors import ConfigError, did_you_mean, suggestion
from echoserver.system.cpus import Affinity, parse_affinity
from echoserver.system.files import read_file
from echoserver.units import parse_duration

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAPPED = 96  # bits before the address in an IPv6 address that stands for one of IPv4 (RFC 4291)

ENVIRONMENT_PREFIX = "ECHOSERVER_"

# What Kubernetes tells every pod of services that are called echoserver, or echoserver-metrics.
_INJECTED = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|\w+_PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)

Overload = Literal["queue", "reject", "shed-idle"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogFormat = Literal["auto", "console", "json"]

# What SIGHUP does with a setting that has changed: it is taken over in place, or by the workers
# that replace the present ones. All others keep their value.
IN_PLACE, IN_WORKERS = "in place", "in workers"

# A parser turns what was typed (text), or what a TOML file holds (text, numbers), into the
# setting's value; its ValueError completes the sentence "--port must be ...".
Parser = Callable[[Any], Any]


def _integer(low: int, high: int) -> Parser:
    def parse(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def _count_or_auto(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    try:
        return int(_integer(1, 1024)(value))
    except ValueError as error:
        raise ValueError(f"auto, or {error}") from None


def _choice(values: tuple[str, ...]) -> Parser:
    def parse(value: Any) -> str:
        if value not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return str(value)

    return parse


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("a text without control characters, and not empty")
    return value


def _hosts(value: Any) -> tuple[str, ...]:
    """Read addresses and names: several, or in one text with commas."""
    if isinstance(value, str) and "," in value:
        value = [item for item in value.split(",") if item.strip()]
    hosts = [
        _text(item).strip() for item in (value if isinstance(value, list | tuple) else [value])
    ]
    if not hosts:
        raise ValueError("at least one address or name")
    return tuple(dict.fromkeys(map(parse_host, hosts)))


_MODE = re.compile(r"(?:0o?)?[0-7]{3}", re.ASCII)


def _mode(value: Any) -> str:
    # No number: TOML's 660 would be 660 in decimal.
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError("a mode of three octal digits, as a text, such as 660")
    return value[-3:]


def _networks(value: Any) -> tuple[Network, ...]:
    """Read networks and addresses: several, or in one text with commas."""
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    networks: list[Network] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        try:
            if not isinstance(item, str | Network):  # which ip_network takes for an address
                raise ValueError  # noqa: TRY004 - one kind of error for whatever was typed
            network = ipaddress.ip_network(item) if isinstance(item, str) else item
        except ValueError as error:
            hint = " (bits beyond the prefix are set)" if "host bits" in str(error) else ""
            raise ValueError(f"an address or a network, such as 192.0.2.0/24{hint}") from None
        networks.append(_as_ipv4(network))
    if not networks and not isinstance(value, tuple):  # which is the default, or none was typed
        raise ValueError("at least one address or network, such as 192.0.2.0/24")
    return tuple(networks)


def _balancers(value: Any) -> tuple[Network | Literal["unix"], ...]:
    """Read what `_networks` takes, and ``unix``."""
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    items = value if isinstance(value, list | tuple) else [value]
    others = [item for item in items if item != "unix"]
    try:
        networks = _networks(type(items)(others)) if others or "unix" not in items else ()
    except ValueError as error:
        raise ValueError(f"unix, or {error}") from None
    return (*networks, *(("unix",) if len(others) < len(items) else ()))


def _as_ipv4(network: Network) -> Network:
    """Return what ::ffff:192.0.2.0/120 means: clients are compared by their IPv4 addresses."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED))


def _endpoint(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("HOST:PORT")  # noqa: TRY004 - one kind of error for whatever was typed
    parse_endpoint(value)
    return value


_ON, _OFF = {"on", "true", "yes", "1"}, {"off", "false", "no", "0"}


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in _ON | _OFF:
        raise ValueError("on or off")
    return value.lower() in _ON


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a number of seconds from 0 up, or a duration such as 500ms, 5s or 2m")  # noqa: TRY004 - one kind of error for whatever was typed
    return parse_duration(value)


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Read KEY=VALUE, several of them, or a mapping."""
    if isinstance(value, str):
        value = [item for item in value.split(",") if item.strip()]
    if isinstance(value, Mapping):
        value = value.items()
    pairs = []
    for item in value if isinstance(value, list | tuple | ItemsView) else [value]:
        pair = item.partition("=")[::2] if isinstance(item, str) else item
        if not isinstance(pair, list | tuple) or len(pair) != 2:  # noqa: PLR2004 - it is a pair
            raise ValueError("KEY=VALUE")
        key, text = (str(part).strip() for part in pair)
        if not key.replace("-", "_").isidentifier() or not text:
            raise ValueError("KEY=VALUE")
        pairs.append((key, text))
    return tuple(pairs)


def _setting(  # what a field of Config carries besides its type
    default: Any, explanation: str, parse: Parser, *, metavar: str, short: str = "", **extra: Any
) -> Any:
    metadata = {"help": explanation, "parse": parse, "metavar": metavar, "short": short, **extra}
    return field(default=default, metadata=MappingProxyType(metadata))


@dataclass(frozen=True, slots=True)
class Config:
    """How one server serves. Immutable; `load_config` makes one from all its sources.

    Timeouts are in seconds, and 0 turns one off; ``"500ms"`` means 0.5.

    Raises:
        ConfigError: A value is not what its setting takes.
    """

    backend: str = _setting(
        "thread",
        "Concurrency model: one that --list-backends shows, or a class of your own as "
        "package.module:Class or path/to/file.py:Class.",
        _text,
        metavar="NAME",
        short="-b",
        reload=IN_WORKERS,
        heading="What is served",
    )
    handler: str = _setting(
        "echo",
        "What is answered: echo (RFC 862), upper (ASCII letters in upper case), sleep and cpu (the "
        "same bytes, after waiting or computing), or a class of your own as package.module:Class "
        "or path/to/file.py:Class.",
        _text,
        metavar="NAME",
        reload=IN_PLACE,
    )
    handler_option: tuple[tuple[str, str], ...] = _setting(
        (),
        "An option of the handler, for example seconds=0.5; may be repeated.",
        _pairs,
        metavar="KEY=VALUE",
        multiple=True,
        reload=IN_PLACE,
    )
    host: tuple[str, ...] = _setting(
        ("127.0.0.1",),
        "Address or name to listen on, IPv6 too (::1), or a UNIX socket: unix:/path, or @name for "
        "one without a file; may be repeated. A name stands for all of its addresses.",
        _hosts,
        metavar="HOST",
        multiple=True,
        shown_default="127.0.0.1",
    )
    port: int = _setting(
        9999,
        "Port to listen on, at every address; 0 takes a free one. UNIX sockets have none.",
        _integer(0, 65535),
        metavar="PORT",
        whole_number=True,
    )
    backlog: int = _setting(
        4096,
        "Connections that the kernel may hold until they are accepted (listen(2)); "
        "net.core.somaxconn caps it.",
        _integer(1, 2**31 - 1),
        metavar="N",
        whole_number=True,
    )
    socket_mode: str = _setting(
        "666",
        "Permissions of the file of unix:/path, in octal; to connect takes w.",
        _mode,
        metavar="MODE",
    )
    workers: int | Literal["auto"] | None = _setting(
        None,
        "Serve in so many processes, supervised, on one listener; auto: one for each CPU.",
        _count_or_auto,
        metavar="N|auto",
        heading="Processes",
        shown_default="this process alone",
    )
    affinity: Affinity = _setting(
        "off",
        "Pin each worker, or without workers this process, to one CPU: auto (the next for each) or "
        "a list such as 0,2-3 (its next for each).",
        parse_affinity,
        metavar="off|auto|LIST",
        reload=IN_WORKERS,
    )
    pool_size: int = _setting(
        64,
        "Threads of the backends `pool` and `selector-pool`.",
        _integer(1, 100_000),
        metavar="N",
        whole_number=True,
        only_where_backend_reads=True,
        reload=IN_WORKERS,
    )
    max_connections: int | None = _setting(
        None,
        "Connections open at a time, over all workers.",
        _integer(1, 10_000_000),
        metavar="N",
        whole_number=True,
        shown_default="the least of 10000, the descriptor limit less 64 (below 128, half of it), "
        "and what the backend holds",
        heading="Limits",
    )
    overload: Overload = _setting(
        "queue",
        "At that limit: queue (stop accepting; the kernel queues), reject (accept, and close "
        "without a byte) or shed-idle (as queue, but end who has been silent the longest, and for "
        "a second at least).",
        _choice(get_args(Overload)),
        metavar="queue|reject|shed-idle",
        reload=IN_PLACE,
    )
    max_connections_per_ip: int | None = _setting(
        None,
        "Connections open at a time from one address, or one /64 of IPv6, over all workers; "
        "whoever comes beyond it is closed without a byte.",
        _integer(1, 10_000_000),
        metavar="N",
        whole_number=True,
        shown_default="no such limit",
        reload=IN_PLACE,
    )
    allow: tuple[Network, ...] = _setting(
        (),
        "Serve only clients with an address in here, for example 192.0.2.0/24 or ::1; may be "
        "repeated.",
        _networks,
        metavar="CIDR",
        heading="Who may connect",
        multiple=True,
        shown_default="all",
        reload=IN_PLACE,
    )
    deny: tuple[Network, ...] = _setting(
        (),
        "Serve no client with an address in here, whatever --allow says; may be repeated.",
        _networks,
        metavar="CIDR",
        multiple=True,
        reload=IN_PLACE,
    )
    proxy_protocol: bool = _setting(
        False,
        "Expect a PROXY header, version 1 or 2, before a client's first byte, and take the "
        "client's address from it.",
        _switch,
        metavar="on|off",
        flag=True,
        reload=IN_PLACE,
    )
    proxy_from: tuple[Network | Literal["unix"], ...] = _setting(
        (),
        "Addresses of the load balancers: only they may connect, and only their headers are "
        "believed; unix: every client of a UNIX socket; may be repeated.",
        _balancers,
        metavar="CIDR|unix",
        multiple=True,
        reload=IN_PLACE,
    )
    idle_timeout: float = _setting(
        300.0,
        "Seconds without a byte from the peer after which a connection is ended.",
        _seconds,
        metavar="SECONDS",
        heading="Timeouts",
        reload=IN_PLACE,
    )
    write_timeout: float = _setting(
        30.0,
        "Seconds in which the peer takes none of what it is owed, after which it is cut off.",
        _seconds,
        metavar="SECONDS",
        reload=IN_PLACE,
    )
    drain_timeout: float = _setting(
        8.0,
        "Seconds that a shutdown waits for what is still owed to peers.",
        _seconds,
        metavar="SECONDS",
        reload=IN_PLACE,
    )
    handshake_timeout: float = _setting(
        10.0,
        "Seconds for the TLS handshake, and as many for a PROXY header.",
        _seconds,
        metavar="SECONDS",
        reload=IN_PLACE,
    )
    tls_cert: str | None = _setting(
        None,
        "Serve TLS (1.2 or later) with the certificate chain in this PEM file.",
        _text,
        metavar="FILE",
        heading="TLS",
        shown_default="no TLS",
        reload=IN_PLACE,
    )
    tls_key: str | None = _setting(
        None,
        "The certificate's private key (PEM, not encrypted).",
        _text,
        metavar="FILE",
        shown_default="in the file of --tls-cert",
        reload=IN_PLACE,
    )
    tls_client_ca: str | None = _setting(
        None,
        "Require a client certificate that a CA in this PEM file has issued (mutual TLS).",
        _text,
        metavar="FILE",
        shown_default="any client",
        reload=IN_PLACE,
    )
    user: str | None = _setting(
        None,
        "Become this user once the port is bound, for good.",
        _text,
        metavar="NAME|UID",
        heading="Privileges",
        shown_default="whoever started it",
    )
    group: str | None = _setting(
        None,
        "And this group.",
        _text,
        metavar="NAME|GID",
        shown_default="that user's",
    )
    metrics: str | None = _setting(
        None,
        "Answer /metrics (Prometheus), /healthz and /readyz over HTTP here, from a process of its "
        "own; needs the extra metrics.",
        _endpoint,
        metavar="HOST:PORT",
        shown_default="nowhere",
        heading="Monitoring and logs",
    )
    access_log: str | None = _setting(
        None,
        "Append a line of JSON to this file for each connection that has ended; -: to standard "
        "output. SIGHUP opens it anew.",
        _text,
        metavar="FILE|-",
        shown_default="none",
    )
    log_level: LogLevel = _setting(
        "info",
        f"Least severe event to log: {', '.join(get_args(LogLevel))}.",
        _choice(get_args(LogLevel)),
        metavar="LEVEL",
        reload=IN_PLACE,
    )
    log_format: LogFormat = _setting(
        "auto",
        "auto is console on a terminal, JSON elsewhere.",
        _choice(get_args(LogFormat)),
        metavar="auto|console|json",
        reload=IN_WORKERS,
    )
    lifeline: int | None = _setting(
        None,
        "Drain when this inherited file descriptor reaches its end: whoever holds the other end "
        "of the pipe takes the server along, however it dies.",
        _integer(3, 2**31 - 1),
        metavar="FD",
        hidden=True,
    )
    # What is not a setting, but belongs to one reading of the settings:
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Setting → what it was read from, as a person would call it: ``--port``."""

    origin: tuple[Mapping[str, Any], str | os.PathLike[str] | None] | None = field(
        default=None, compare=False, repr=False
    )
    """The options and the file that `load_config` read, to read them again."""

    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What the server logs once it can log."""

    def __post_init__(self) -> None:
        """Check every setting, and turn what was typed into what it means.

        Raises:
            ConfigError: One is not what it must be; the message names its source.
        """
        for setting in settings():
            value = getattr(self, setting.name)
            if value is None and default_of(setting) is None:
                continue
            try:
                parsed = setting.metadata["parse"](value)
            except ValueError as error:
                source = self.sources.get(setting.name, setting.name)
                raise ConfigError(f"{source} must be {error}, not {_shown(value)}") from None
            object.__setattr__(self, setting.name, parsed)

    def source(self, name: str) -> str:
        """Return what setting `name` was read from, to stand in a sentence."""
        return self.sources.get(name, f"the default {option_name(name)}")


def reread(config: Config, *, in_workers: bool) -> tuple[Config, list[str]]:
    """Read again what `config` was read from, and take over what can be changed at run time.

    Args:
        config: What holds now.
        in_workers: New processes will serve by it, and not this one.

    Returns:
        The configuration from now on, and the settings whose change must wait for a restart.

    Raises:
        ConfigError: The new one is not valid.
    """
    if config.origin is None:
        return config, []
    options, file = config.origin
    fresh = load_config(options, file=file, reload=True)
    kept: dict[str, Any] = {}
    waiting: list[str] = []
    for setting in settings():
        reloads = setting.metadata.get("reload")
        if reloads == IN_PLACE or (in_workers and reloads):
            continue
        kept[setting.name] = getattr(config, setting.name)
        if kept[setting.name] != getattr(fresh, setting.name):
            waiting.append(option_name(setting.name))
    return replace(fresh, **kept), waiting


def settings() -> list["Field[Any]"]:
    """Return the fields of `Config` that a user sets, in the order of ``--help``."""
    return [setting for setting in fields(Config) if "parse" in setting.metadata]


def option_name(setting: str) -> str:
    """Return a setting's spelling on the command line: ``port`` → ``--port``."""
    return "--" + setting.replace("_", "-")


def load_config(
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | os.PathLike[str] | None = None,
    *,
    reload: bool = False,
) -> Config:
    """Merge command-line `options`, the `environment` and a TOML `file` over the defaults.

    Args:
        options: Setting → text or value; a None counts as not given.
        environment: Variables to read ``ECHOSERVER_*`` from; default: this process's own.
        file: TOML file; default: what ``ECHOSERVER_CONFIG`` names.
        reload: Read regular files only: a server goes on meanwhile.

    Raises:
        ConfigError: A value is not what its setting takes, or the file cannot be read.
            The message names the source: ``--port``, ``ECHOSERVER_PORT``, ``server.toml: port``.
    """
    environment = os.environ if environment is None else environment
    given = {
        name: value for name, value in (options or {}).items() if value is not None and value != ()
    }
    warnings: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    layers = [
        _from_file(
            file if file is not None else environment.get(ENVIRONMENT_PREFIX + "CONFIG") or None,
            reload=reload,
        ),
        _from_environment(environment, warnings),
        {name: (option_name(name), value) for name, value in given.items()},
    ]
    for layer in layers:
        for name, (source, value) in layer.items():
            values[name], sources[name] = value, source
    return Config(**values, sources=sources, origin=(given, file), warnings=tuple(warnings))


def default_of(setting: "Field[Any]") -> Any:
    """Return the default of one of `settings()`."""
    assert setting.default is not MISSING  # noqa: S101 - every setting has one, by _setting's signature
    return setting.default


def _from_environment(
    environment: Mapping[str, str], warnings: list[str]
) -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    for setting in settings():
        variable = ENVIRONMENT_PREFIX + setting.name.upper()
        value = environment.get(variable, "")
        if not value:  # compose files pass ${VARIABLE:-} along as an empty text
            continue
        if setting.name == "port" and value.startswith(("tcp://", "udp://", "sctp://")):
            # Kubernetes describes a service called "echoserver" to every pod in this very name.
            warnings.append(
                f"{variable}={_shown(value)} looks like a service description that Kubernetes "
                "injected, not like a port; it is ignored"
            )
            continue
        found[setting.name] = (variable, value)
    warnings += _unknown_variables(environment)
    return found


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting's and is none."""
    hidden = {one.name.upper() for one in settings() if one.metadata.get("hidden")}
    shown = ["CONFIG", *(one.name.upper() for one in settings() if one.name.upper() not in hidden)]
    found = []
    for variable, value in sorted(environment.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or not value or name in hidden or name in shown:
            continue
        if not _INJECTED.fullmatch(f"{name}={value}"):
            hint = suggestion(name.upper(), shown).replace("'", f"'{ENVIRONMENT_PREFIX}", 1)
            found.append(f"{variable} is not a setting{hint}")
    return found


def _from_file(file: str | os.PathLike[str] | None, *, reload: bool) -> dict[str, tuple[str, Any]]:
    if file is None:
        return {}
    import tomllib

    try:
        table = tomllib.loads(read_file(file, reload=reload).decode("utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot read the configuration file {file}: {reason}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration file {file} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration file {file} is not valid TOML: {error}") from None
    known = {setting.name: setting for setting in settings() if not setting.metadata.get("hidden")}
    found: dict[str, tuple[str, Any]] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            table_hint = "; settings stand at the top level" if isinstance(value, dict) else ""
            raise ConfigError(
                f"{file}: unknown setting {key!r}{did_you_mean(name, known)}{table_hint}"
            )
        if name in found:
            raise ConfigError(f"{file}: {key!r} is set twice, with a dash and with an underscore")
        # TOML has numbers of its own: port = "80" is a mistake, not a way to write 80.
        if isinstance(value, str) and known[name].metadata.get("whole_number"):
            raise ConfigError(f"{file}: {key} must be a whole number, not the text {value!r}")
        found[name] = (f"{file}: {key}", value)
    return found


def _shown(value: Any) -> str:
    text = repr(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - a sentence stays a sentence
