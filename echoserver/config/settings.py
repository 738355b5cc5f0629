"""Every setting of the server: named, explained and checked once, whatever it is read from.

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
    """What SIGHUP does with a setting that has changed; all others keep their value."""

    IN_PLACE = auto()
    """It holds from now on, for new connections."""
    IN_WORKERS = auto()
    """It holds for the workers that replace the present ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: how it is typed, explained, checked and reloaded."""

    name: str = ""
    """The field of `Config`."""
    default: Any
    help: str
    """What it does, for ``--help``."""
    parse: Parser
    """Checks what was typed, and returns what it means."""
    metavar: str
    """What ``--help`` calls its value."""
    short: str = ""
    """Its one-letter option, such as ``-b``."""
    heading: str = ""
    """The heading in ``--help`` that it is the first under."""
    shown_default: str = ""
    """What ``--help`` calls the default, where the value does not say it."""
    multiple: bool = False
    """The option may be repeated."""
    flag: bool = False
    """The option takes no value."""
    hidden: bool = False
    """It is for programs, and not shown."""
    whole_number: bool = False
    """A TOML file must hold a number."""
    only_where_backend_reads: bool = False
    """It has an effect on those backends alone that say so (`Backend.reads`)."""
    reload: Reload | None = None
    """What SIGHUP does with it; None: nothing."""

    @property
    def option(self) -> str:
        """Its spelling on the command line."""
        return option_name(self.name)


def _setting(default: Any, help: str, parse: Parser, **about: Any) -> Any:  # noqa: A002 - as `Setting`
    """Return a field of `Config`; see `Setting`."""
    setting = Setting(default=default, help=help, parse=parse, **about)
    return field(default=default, metadata={_SETTING: setting})


def _seconds_setting(default: float, help: str, **about: Any) -> Any:  # noqa: A002 - as `Setting`
    """Return a field of `Config` for a duration."""
    return _setting(default, help, seconds, metavar="SECONDS", **about)


def _path_setting(help: str, **about: Any) -> Any:  # noqa: A002 - as `Setting`
    """Return a field of `Config` for a file."""
    return _setting(None, help, printable, metavar="FILE", **about)


_SETTING = "setting"


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
        printable,
        metavar="NAME",
        short="-b",
        reload=Reload.IN_WORKERS,
        heading="What is served",
    )
    handler: str = _setting(
        "echo",
        "What is answered: echo (RFC 862), upper (ASCII letters in upper case), sleep and cpu (the "
        "same bytes, after waiting or computing), or a class of your own as package.module:Class "
        "or path/to/file.py:Class.",
        printable,
        metavar="NAME",
        reload=Reload.IN_PLACE,
    )
    handler_option: tuple[tuple[str, str], ...] = _setting(
        (),
        "An option of the handler, for example seconds=0.5; may be repeated.",
        pairs,
        metavar="KEY=VALUE",
        multiple=True,
        reload=Reload.IN_PLACE,
    )
    host: tuple[str, ...] = _setting(
        ("127.0.0.1",),
        "Address or name to listen on, IPv6 too (::1), or a UNIX socket: unix:/path, or @name for "
        "one without a file; may be repeated. A name stands for all of its addresses.",
        hosts,
        metavar="HOST",
        multiple=True,
        shown_default="127.0.0.1",
    )
    port: int = _setting(
        9999,
        "Port to listen on, at every address; 0 takes a free one. UNIX sockets have none.",
        integer(0, 65535),
        metavar="PORT",
        whole_number=True,
    )
    backlog: int = _setting(
        4096,
        "Connections that the kernel may hold until they are accepted (listen(2)); "
        "net.core.somaxconn caps it.",
        integer(1, 2**31 - 1),
        metavar="N",
        whole_number=True,
    )
    socket_mode: str = _setting(
        "666",
        "Permissions of the file of unix:/path, in octal; to connect takes w.",
        file_mode,
        metavar="MODE",
    )
    workers: int | Literal["auto"] | None = _setting(
        None,
        "Serve in so many processes, supervised, on one listener; auto: one for each CPU.",
        count_or_auto,
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
        reload=Reload.IN_WORKERS,
    )
    pool_size: int = _setting(
        64,
        "Threads of the backends `pool` and `selector-pool`.",
        integer(1, 100_000),
        metavar="N",
        whole_number=True,
        only_where_backend_reads=True,
        reload=Reload.IN_WORKERS,
    )
    max_connections: int | None = _setting(
        None,
        "Connections open at a time, over all workers.",
        integer(1, 10_000_000),
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
        choice(get_args(Overload)),
        metavar="queue|reject|shed-idle",
        reload=Reload.IN_PLACE,
    )
    max_connections_per_ip: int | None = _setting(
        None,
        "Connections open at a time from one address, or one /64 of IPv6, over all workers; "
        "connections beyond the limit are closed immediately.",
        integer(1, 10_000_000),
        metavar="N",
        whole_number=True,
        shown_default="no such limit",
        reload=Reload.IN_PLACE,
    )
    allow: tuple[Network, ...] = _setting(
        (),
        "Serve only clients with an address in here, for example 192.0.2.0/24 or ::1; may be "
        "repeated.",
        networks,
        metavar="CIDR",
        heading="Who may connect",
        multiple=True,
        shown_default="all",
        reload=Reload.IN_PLACE,
    )
    deny: tuple[Network, ...] = _setting(
        (),
        "Serve no client with an address in here, whatever --allow says; may be repeated.",
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
        "Addresses of the load balancers: only they may connect, and only their headers are "
        "believed; unix: every client of a UNIX socket; may be repeated.",
        balancers,
        metavar="CIDR|unix",
        multiple=True,
        reload=Reload.IN_PLACE,
    )
    idle_timeout: float = _seconds_setting(
        300.0,
        "Seconds without a byte from the peer after which a connection is ended.",
        heading="Timeouts",
        reload=Reload.IN_PLACE,
    )
    write_timeout: float = _seconds_setting(
        30.0,
        "Seconds in which the peer takes none of what it is owed, after which it is cut off.",
        reload=Reload.IN_PLACE,
    )
    drain_timeout: float = _seconds_setting(
        8.0,
        "Seconds that a shutdown waits for what is still owed to peers.",
        reload=Reload.IN_PLACE,
    )
    handshake_timeout: float = _seconds_setting(
        10.0,
        "Seconds for the TLS handshake, and as many for a PROXY header.",
        reload=Reload.IN_PLACE,
    )
    tls_cert: str | None = _path_setting(
        "Serve TLS (1.2 or later) with the certificate chain in this PEM file.",
        heading="TLS",
        shown_default="no TLS",
        reload=Reload.IN_PLACE,
    )
    tls_key: str | None = _path_setting(
        "The certificate's private key (PEM, not encrypted).",
        shown_default="in the file of --tls-cert",
        reload=Reload.IN_PLACE,
    )
    tls_client_ca: str | None = _path_setting(
        "Require a client certificate that a CA in this PEM file has issued (mutual TLS).",
        shown_default="any client",
        reload=Reload.IN_PLACE,
    )
    user: str | None = _setting(
        None,
        "Drop privileges to this user after binding the port.",
        printable,
        metavar="NAME|UID",
        heading="Privileges",
        shown_default="the user who started it",
    )
    group: str | None = _setting(
        None,
        "Group to switch to after binding the port.",
        printable,
        metavar="NAME|GID",
        shown_default="that user's",
    )
    metrics: str | None = _setting(
        None,
        "Answer /metrics (Prometheus), /healthz and /readyz over HTTP here, from a process of its "
        "own; needs the extra metrics.",
        endpoint,
        metavar="HOST:PORT",
        shown_default="nowhere",
        heading="Monitoring and logs",
    )
    access_log: str | None = _setting(
        None,
        "Append a line of JSON to this file for each connection that has ended; -: to standard "
        "output. SIGHUP reopens it.",
        printable,
        metavar="FILE|-",
        shown_default="none",
    )
    log_level: LogLevel = _setting(
        "info",
        f"Least severe event to log: {', '.join(get_args(LogLevel))}.",
        choice(get_args(LogLevel)),
        metavar="LEVEL",
        reload=Reload.IN_PLACE,
    )
    log_format: LogFormat = _setting(
        "auto",
        "auto is console on a terminal, JSON elsewhere.",
        choice(get_args(LogFormat)),
        metavar="auto|console|json",
        reload=Reload.IN_WORKERS,
    )
    lifeline: int | None = _setting(
        None,
        "Drain when this inherited file descriptor reaches its end: the process that holds the "
        "other end of the pipe takes the server along, however it dies.",
        integer(3, 2**31 - 1),
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
            if value is None and setting.default is None:
                continue
            try:
                parsed = setting.parse(value)
            except ValueError as error:
                source = self.sources.get(setting.name, setting.name)
                raise ConfigError(f"{source} must be {error}, not {shown(value)}") from None
            object.__setattr__(self, setting.name, parsed)

    def source(self, name: str) -> str:
        """Return what setting `name` was read from, to stand in a sentence."""
        return self.sources.get(name, f"the default {option_name(name)}")


@cache
def settings() -> tuple[Setting, ...]:
    """Return what a user can set, in the order of ``--help``."""
    return tuple(
        replace(one.metadata[_SETTING], name=one.name)
        for one in fields(Config)
        if _SETTING in one.metadata
    )


def option_name(setting: str) -> str:
    """Return a setting's spelling on the command line: ``port`` → ``--port``."""
    return "--" + setting.replace("_", "-")


def shown(value: Any) -> str:
    """Return a value as a sentence can quote it, which stays one sentence."""
    text = repr(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - of a line
