"""Parsers of settings, from text or a value in a TOML file to the setting's value."""

import ipaddress
import re
from collections.abc import Callable, ItemsView, Mapping
from typing import Any, Literal

from echoserver.addresses import parse_endpoint, parse_host
from echoserver.units import parse_duration

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_PREFIX_LENGTH = 96  # bits before the address in an IPv4-mapped IPv6 address (RFC 4291)

Parser = Callable[[Any], Any]
"""Turns text, or a value in a TOML file (text, numbers), into a setting's value.

Its ValueError completes the sentence "--port must be ..."."""


def integer(low: int, high: int) -> Parser:
    """Return a parser of whole numbers from `low` to `high`."""

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
    """Return a parser that accepts only `values`."""

    def parse(value: Any) -> str:
        if value not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return str(value)

    return parse


def printable(value: Any) -> str:
    """Read a non-empty printable string."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("a non-empty printable string")
    return value


def hosts(value: Any) -> tuple[str, ...]:
    """Read host addresses and names, from a list or from text with commas."""
    if isinstance(value, str) and "," in value:
        value = [item for item in value.split(",") if item.strip()]
    names = [
        printable(item).strip() for item in (value if isinstance(value, list | tuple) else [value])
    ]
    if not names:
        raise ValueError("at least one address or name")
    return tuple(dict.fromkeys(map(parse_host, names)))


_MODE = re.compile(r"(?:0o?)?[0-7]{3}", re.ASCII)


def file_mode(value: Any) -> str:
    """Read the permissions of a file, in octal."""
    # Numbers are refused, because 660 in TOML would be a decimal number.
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError("a mode of three octal digits, as a text, such as 660")
    return value[-3:]


def networks(value: Any) -> tuple[Network, ...]:
    """Read networks and addresses, from a list or from text with commas."""
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    result: list[Network] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        try:
            if not isinstance(item, str | Network):  # ip_network takes a number for an address
                raise ValueError  # noqa: TRY004 - one kind of error for all bad values
            network = ipaddress.ip_network(item) if isinstance(item, str) else item
        except ValueError as error:
            hint = " (bits beyond the prefix are set)" if "host bits" in str(error) else ""
            raise ValueError(f"an address or a network, such as 192.0.2.0/24{hint}") from None
        result.append(_as_ipv4(network))
    # An empty tuple is the default, or an option that was not used.
    if not result and not isinstance(value, tuple):
        raise ValueError("at least one address or network, such as 192.0.2.0/24")
    return tuple(result)


def balancers(value: Any) -> tuple[Network | Literal["unix"], ...]:
    """Read networks and addresses as `networks` does, and the word ``unix``."""
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    items = value if isinstance(value, list | tuple) else [value]
    others = [item for item in items if item != "unix"]
    try:
        result = networks(type(items)(others)) if others or "unix" not in items else ()
    except ValueError as error:
        raise ValueError(f"unix, or {error}") from None
    return (*result, *(("unix",) if len(others) < len(items) else ()))


def _as_ipv4(network: Network) -> Network:
    """Return the IPv4 network that an IPv4-mapped network such as ::ffff:192.0.2.0/120 means.

    Clients are compared by their IPv4 addresses.
    """
    address = getattr(network.network_address, "ipv4_mapped", None)
    if address is None or network.prefixlen < _MAPPED_PREFIX_LENGTH:
        return network
    return ipaddress.ip_network((address, network.prefixlen - _MAPPED_PREFIX_LENGTH))


def endpoint(value: Any) -> str:
    """Read an address as HOST:PORT."""
    if not isinstance(value, str):
        raise ValueError("HOST:PORT")  # noqa: TRY004 - one kind of error for all bad values
    parse_endpoint(value)
    return value


_ON, _OFF = {"on", "true", "yes", "1"}, {"off", "false", "no", "0"}


def switch(value: Any) -> bool:
    """Read a switch: on or off."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in _ON | _OFF:
        raise ValueError("on or off")
    return value.lower() in _ON


def seconds(value: Any) -> float:
    """Read a time in seconds, or as a duration such as 500ms."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a number of seconds from 0 up, or a duration such as 500ms, 5s or 2m")  # noqa: TRY004 - one kind of error for all bad values
    return parse_duration(value)


def pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Read pairs of a key and a value, as KEY=VALUE or from a mapping."""
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
