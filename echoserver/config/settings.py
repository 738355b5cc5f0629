"""The declarations of all settings, with their help texts and parsers, for every source.

A value comes from, in this order: the option on the command line, the environment's
``ECHOSERVER_<OPTION>``, the file named by ``--config``, the default.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum, auto
from functools import cache
from typing import Any, Literal, get_args

from echoserver.config.parsers import (
    Network,
    Parser,
    balancers,
    choice,
    count_or_auto,
    endpoint,
    file_mode,
    hosts,
    integer,
    networks,
    pairs,
    printable,
    seconds,
    switch,
)
from echoserver.errors import ConfigError
from echoserver.system.cpus import Affinity, parse_affinity

Overload = Literal["queue", "reject", "shed-idle"]

LogLevel = Literal["debug", "info", "warning", "error", "critical"]

LogFormat = Literal["auto", "console", "json"]


class Reload(Enum):
    """When SIGHUP applies a changed setting; a setting without one keeps its value."""

    IN_PLACE = auto()
    """At once, for new connections."""
    IN_WORKERS = auto()
    """In the workers that replace the present ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting, with its option, help text, parser and reload behaviour."""

    name: str = ""
    """The field of `Config`."""
    default: Any
    help: str
    """The text in ``--help``."""
    parse: Parser
    """Checks a value from any source, and returns the setting's value."""
    metavar: str
    """The name of its value in ``--help``."""
    short: str = ""
    """Its one-letter option, such as ``-b``."""
    heading: str = ""
    """The heading in ``--help`` that begins with this setting."""
    default_text: str = ""
    """The description of the default in ``--help``, where the value alone is not clear."""
    multiple: bool = False
    """The option may be repeated."""
    flag: bool = False
    """The option takes no value."""
    hidden: bool = False
    """The setting is for programs, and ``--help`` does not list it."""
    whole_number: bool = False
    """A TOML file must hold a number."""
    only_where_backend_reads: bool = False
    """Only backends that declare the setting (`Backend.reads`) use it."""
    reload: Reload | None = None
    """When SIGHUP applies a changed value; None: never."""

    @property
    def option(self) -> str:
        """The setting's option on the command line."""
        return option_name(self.name)


def _setting(default: Any, help: str, parse: Parser, **attributes: Any) -> Any:  # noqa: A002 - as `Setting`
    """Return a field of `Config`; see `Setting`."""
    setting = Setting(default=default, help=help, parse=parse, **attributes)
    return field(default=default, metadata={_SETTING: setting})


def _seconds_setting(default: float, help: str, **attributes: Any) -> Any:  # noqa: A002 - as `Setting`
    """Return a field of `Config` for a duration."""
    return _setting(default, help, seconds, metavar="SECONDS", **attributes)


def _path_setting(help: str, **attributes: Any) -> Any:  # noqa: A002 - as `Setting`
    """Return a field of `Config` for a file."""
    return _setting(None, help, printable, metavar="FILE", **attributes)


_SETTING = "setting"


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration of one server. It is immutable; `load_config` makes it from all sources.

    Timeouts are in seconds, and 0 turns one off; ``"500ms"`` means 0.5.

    Raises:
        ConfigError: A setting does not accept its value.
    """

    backend: str = _setting(
        "thread",
        "Concurrency model: a name that --list-backends shows, or a class of your own as "
        "package.module:Class or path/to/file.py:Class.",
        printable,
        metavar="NAME",
        short="-b",
        reload=Reload.IN_WORKERS,
        heading="Service",
    )
    handler: str = _setting(
        "echo",
        "Handler that decides the reply: echo (RFC 862), upper (ASCII letters in upper case), "
        "sleep or cpu (the same bytes, after waiting or computing), or a class of your own as "
        "package.module:Class or path/to/file.py:Class.",
        printable,
        metavar="NAME",
        reload=Reload.IN_PLACE,
    )
    handler_option: tuple[tuple[str, str], ...] = _setting(
        (),
        "Option for the handler, for example seconds=0.5; may be repeated.",
        pairs,
        metavar="KEY=VALUE",
        multiple=True,
        reload=Reload.IN_PLACE,
    )
    host: tuple[str, ...] = _setting(
        ("127.0.0.1",),
        "Address or name to listen on, including IPv6 (::1), or a UNIX socket: unix:/path, or "
        "@name for one without a file; may be repeated. A name stands for all of its addresses.",
        hosts,
        metavar="HOST",
        multiple=True,
        default_text="127.0.0.1",
    )
    port: int = _setting(
        9999,
        "Port to listen on at every address; 0 picks a free port. UNIX sockets have no port.",
        integer(0, 65535),
        metavar="PORT",
        whole_number=True,
    )
    backlog: int = _setting(
        4096,
        "Maximum number of connections that the kernel queues until they are accepted (listen(2)); "
        "net.core.somaxconn caps it.",
        integer(1, 2**31 - 1),
        metavar="N",
        whole_number=True,
    )
    socket_mode: str = _setting(
        "666",
        "Permissions of the file of unix:/path, in octal; to connect, clients need write "
        "permission.",
        file_mode,
        metavar="MODE",
    )
    workers: int | Literal["auto"] | None = _setting(
        None,
        "Number of supervised worker processes that share one listener; auto: one per CPU.",
        count_or_auto,
        metavar="N|auto",
        heading="Processes",
        default_text="serve in this process",
    )
    affinity: Affinity = _setting(
        "off",
        "Pin each worker (or this process, without workers) to one CPU: auto takes the next CPU "
        "for each worker; a list such as 0,2-3 takes the next CPU of the list.",
        parse_affinity,
        metavar="off|auto|LIST",
        reload=Reload.IN_WORKERS,
    )
    pool_size: int = _setting(
        64,
        "Number of threads of the backends `pool` and `selector-pool`.",
        integer(1, 100_000),
        metavar="N",
        whole_number=True,
        only_where_backend_reads=True,
        reload=Reload.IN_WORKERS,
    )
    max_connections: int | None = _setting(
        None,
        "Maximum number of open connections, over all workers.",
        integer(1, 10_000_000),
        metavar="N",
        whole_number=True,
        default_text="the least of 10000, the descriptor limit minus 64 (below 128, half of it), "
        "and the backend's own limit",
        heading="Limits",
    )
    overload: Overload = _setting(
        "queue",
        "What to do at that limit: queue (stop accepting, so that new clients wait in the kernel's "
        "queue), reject (accept new clients and close their connections without sending any data) "
        "or shed-idle (like queue, but also end the connection that has been silent for the "
        "longest time, if for at least one second).",
        choice(get_args(Overload)),
        metavar="queue|reject|shed-idle",
        reload=Reload.IN_PLACE,
    )
    max_connections_per_ip: int | None = _setting(
        None,
        "Maximum number of open connections from one address, or one /64 of IPv6, over all "
        "workers; connections beyond the limit are closed immediately.",
        integer(1, 10_000_000),
        metavar="N",
        whole_number=True,
        default_text="no limit",
        reload=Reload.IN_PLACE,
    )
    allow: tuple[Network, ...] = _setting(
        (),
        "Serve only clients whose address is in this network, for example 192.0.2.0/24 or ::1; may "
        "be repeated.",
        networks,
        metavar="CIDR",
        heading="Who may connect",
        multiple=True,
        default_text="all",
        reload=Reload.IN_PLACE,
    )
    deny: tuple[Network, ...] = _setting(
        (),
        "Reject clients whose address is in this network, even if --allow permits them; may be "
        "repeated.",
        networks,
        metavar="CIDR",
        multiple=True,
        reload=Reload.IN_PLACE,
    )
    proxy_protocol: bool = _setting(
        False,
        "Expect a PROXY header, version 1 or 2, before a client's first byte, and take the "
        "client's address from it.",
        switch,
        metavar="on|off",
        flag=True,
        reload=Reload.IN_PLACE,
    )
    proxy_from: tuple[Network | Literal["unix"], ...] = _setting(
        (),
        "Addresses of the load balancers: only they may connect, and only their PROXY headers are "
        "trusted; unix: every client of a UNIX socket; may be repeated.",
        balancers,
        metavar="CIDR|unix",
        multiple=True,
        reload=Reload.IN_PLACE,
    )
    idle_timeout: float = _seconds_setting(
        300.0,
        "End a connection after this many seconds without data from the peer.",
        heading="Timeouts",
        reload=Reload.IN_PLACE,
    )
    write_timeout: float = _seconds_setting(
        30.0,
        "Cut off a peer that has taken none of the output it is owed for this many seconds.",
        reload=Reload.IN_PLACE,
    )
    drain_timeout: float = _seconds_setting(
        8.0,
        "Seconds that a shutdown waits for peers to take the output they are still owed.",
        reload=Reload.IN_PLACE,
    )
    handshake_timeout: float = _seconds_setting(
        10.0,
        "Time limit in seconds for the TLS handshake, and separately for a PROXY header.",
        reload=Reload.IN_PLACE,
    )
    tls_cert: str | None = _path_setting(
        "Serve TLS (1.2 or later) with the certificate chain in this PEM file.",
        heading="TLS",
        default_text="no TLS",
        reload=Reload.IN_PLACE,
    )
    tls_key: str | None = _path_setting(
        "The certificate's private key (PEM, not encrypted).",
        default_text="in the file of --tls-cert",
        reload=Reload.IN_PLACE,
    )
    tls_client_ca: str | None = _path_setting(
        "Require a client certificate issued by a CA in this PEM file (mutual TLS).",
        default_text="no client certificate",
        reload=Reload.IN_PLACE,
    )
    user: str | None = _setting(
        None,
        "Drop privileges to this user after binding the port.",
        printable,
        metavar="NAME|UID",
        heading="Privileges",
        default_text="the user who started the server",
    )
    group: str | None = _setting(
        None,
        "Group to switch to after binding the port.",
        printable,
        metavar="NAME|GID",
        default_text="that user's",
    )
    metrics: str | None = _setting(
        None,
        "Serve /metrics (Prometheus), /healthz and /readyz over HTTP at this address, from a "
        "separate process; needs the optional dependency echoserver[metrics].",
        endpoint,
        metavar="HOST:PORT",
        default_text="no metrics",
        heading="Monitoring and logs",
    )
    access_log: str | None = _setting(
        None,
        "Append a line of JSON to this file for each connection that has ended; - stands for "
        "standard output. SIGHUP reopens the file.",
        printable,
        metavar="FILE|-",
        default_text="none",
    )
    log_level: LogLevel = _setting(
        "info",
        f"Lowest severity to log: {', '.join(get_args(LogLevel))}.",
        choice(get_args(LogLevel)),
        metavar="LEVEL",
        reload=Reload.IN_PLACE,
    )
    log_format: LogFormat = _setting(
        "auto",
        "Format of the log; auto is console on a terminal and JSON elsewhere.",
        choice(get_args(LogFormat)),
        metavar="auto|console|json",
        reload=Reload.IN_WORKERS,
    )
    lifeline: int | None = _setting(
        None,
        "Drain when this inherited file descriptor reaches end of file, so that the server ends "
        "with the process that holds the other end of the pipe, however that process dies.",
        integer(3, 2**31 - 1),
        metavar="FD",
        hidden=True,
    )
    # The fields below are not settings, but tell where the settings came from.
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Setting → its source, as error messages name it, such as ``--port``."""

    origin: tuple[Mapping[str, Any], str | os.PathLike[str] | None] | None = field(
        default=None, compare=False, repr=False
    )
    """The options and the file that `load_config` read, for a reload."""

    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Warnings that the server logs once it can log."""

    def __post_init__(self) -> None:
        """Parse and check every setting.

        Raises:
            ConfigError: A setting does not accept its value; the message names the source.
        """
        for setting in settings():
            value = getattr(self, setting.name)
            if value is None and setting.default is None:
                continue
            try:
                result = setting.parse(value)
            except ValueError as error:
                source = self.sources.get(setting.name, setting.name)
                raise ConfigError(f"{source} must be {error}, not {quote_value(value)}") from None
            object.__setattr__(self, setting.name, result)

    def source(self, name: str) -> str:
        """Return the source of the setting `name`, for use in a message."""
        return self.sources.get(name, f"the default {option_name(name)}")


@cache
def settings() -> tuple[Setting, ...]:
    """Return all settings, in the order of ``--help``."""
    return tuple(
        replace(one.metadata[_SETTING], name=one.name)
        for one in fields(Config)
        if _SETTING in one.metadata
    )


def option_name(setting: str) -> str:
    """Return a setting's option on the command line: ``port`` → ``--port``."""
    return "--" + setting.replace("_", "-")


def quote_value(value: Any) -> str:
    """Return a value as a message can quote it, cut to a length that fits in a sentence."""
    text = repr(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - fits on a line
