"""What a setting takes: from text, or what a TOML file holds, to its value."""

import ipaddress
import re
from collections.abc import Callable, ItemsView, Mapping
from typing import Any, Literal

from echoserver.addresses import parse_endpoint, parse_host
from echoserver.units import parse_duration

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = 96  # bits before the address in an IPv6 address that stands for one of IPv4 (RFC 4291)

Parser = Callable[[Any], Any]
"""Turns what was typed (text), or what a TOML file holds (text, numbers), into a setting's value.

Its ValueError completes the sentence "--port must be ..."."""


def integer(low: int, high: int) -> Parser:
    """Return what reads whole numbers from `low` to `high`."""

    def parse(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def count_or_auto(value: Any) -> int | str:
    """Read a number of processes, or ``auto``."""
    if value == "auto":
        return "auto"
    try:
        return int(integer(1, 1024)(value))
    except ValueError as error:
        raise ValueError(f"auto, or {error}") from None


def choice(values: tuple[str, ...]) -> Parser:
    """Return what reads one of some words."""

    def parse(value: Any) -> str:
        if value not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return str(value)

    return parse


def printable(value: Any) -> str:
    """Read a text that a terminal can show."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("a non-empty printable string")
    return value


def hosts(value: Any) -> tuple[str, ...]:
    """Read addresses and names: several, or in one text with commas."""
    if isinstance(value, str) and "," in value:
        value = [item for item in value.split(",") if item.strip()]
    found = [
        printable(item).strip() for item in (value if isinstance(value, list | tuple) else [value])
    ]
    if not found:
        raise ValueError("at least one address or name")
    return tuple(dict.fromkeys(map(parse_host, found)))


_MODE = re.compile(r"(?:0o?)?[0-7]{3}", re.ASCII)


def file_mode(value: Any) -> str:
    """Read the permissions of a file, in octal."""
    # No number: TOML's 660 would be 660 in decimal.
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError("a mode of three octal digits, as a text, such as 660")
    return value[-3:]


def networks(value: Any) -> tuple[Network, ...]:
    """Read networks and addresses: several, or in one text with commas."""
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    found: list[Network] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        try:
            if not isinstance(item, str | Network):  # which ip_network takes for an address
                raise ValueError  # noqa: TRY004 - one kind of error for whatever was typed
            network = ipaddress.ip_network(item) if isinstance(item, str) else item
        except ValueError as error:
            hint = " (bits beyond the prefix are set)" if "host bits" in str(error) else ""
            raise ValueError(f"an address or a network, such as 192.0.2.0/24{hint}") from None
        found.append(_as_ipv4(network))
    if not found and not isinstance(value, tuple):  # which is the default, or none was typed
        raise ValueError("at least one address or network, such as 192.0.2.0/24")
    return tuple(found)


def balancers(value: Any) -> tuple[Network | Literal["unix"], ...]:
    """Read what `networks` takes, and ``unix``."""
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    items = value if isinstance(value, list | tuple) else [value]
    others = [item for item in items if item != "unix"]
    try:
        found = networks(type(items)(others)) if others or "unix" not in items else ()
    except ValueError as error:
        raise ValueError(f"unix, or {error}") from None
    return (*found, *(("unix",) if len(others) < len(items) else ()))


def _as_ipv4(network: Network) -> Network:
    """Return what ::ffff:192.0.2.0/120 means: clients are compared by their IPv4 addresses."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED))


def endpoint(value: Any) -> str:
    """Read an address as HOST:PORT."""
    if not isinstance(value, str):
        raise ValueError("HOST:PORT")  # noqa: TRY004 - one kind of error for whatever was typed
    parse_endpoint(value)
    return value


_ON, _OFF = {"on", "true", "yes", "1"}, {"off", "false", "no", "0"}


def switch(value: Any) -> bool:
    """Read on or off."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in _ON | _OFF:
        raise ValueError("on or off")
    return value.lower() in _ON


def seconds(value: Any) -> float:
    """Read a time: seconds, or a duration such as 500ms."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a number of seconds from 0 up, or a duration such as 500ms, 5s or 2m")  # noqa: TRY004 - one kind of error for whatever was typed
    return parse_duration(value)


def pairs(value: Any) -> tuple[tuple[str, str], ...]:
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
