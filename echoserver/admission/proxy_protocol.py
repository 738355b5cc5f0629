"""The PROXY protocol: how a balancer names the client whose connection it passes on.

This module does no I/O: it tells whether bytes are a header, the beginning of one, or invalid. It
reads both versions of "The PROXY protocol" (HAProxy, 2010-2020, sections 2.1 and 2.2) strictly,
because a balancer that is trusted to send the header can be expected to send it right.
"""

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Any

MAX_HEADER_BYTES = 4096
"""The longest header that is accepted; one of version 2 could have 65,551 bytes."""

_V1, _V1_MAX_BYTES = b"PROXY ", 107
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_PORT = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_HIGHEST_PORT = 65535
# Family and transport → the format of a source and a destination. Other values, such as those of
# datagrams, cannot belong to a TCP connection.
_ADDRESS_FORMATS = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}
_FAMILIES_WITHOUT_ADDRESS = {0x00, 0x31}  # unspecified, and UNIX streams

LOCAL = _V2_HEAD.pack(_V2, _LOCAL, 0, 0)
"""The header of a balancer's own connection, such as a health check."""

LOCAL_V1 = b"PROXY UNKNOWN\r\n"
"""The header of a balancer's own connection, in version 1."""


def encode(version: str, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """Return the header of a connection that is passed on.

    Args:
        version: ``v1`` or ``v2``.
        source: The client's address and port.
        destination: Those that it connected to; of the same family.
    """
    hosts = [ipaddress.ip_address(host.partition("%")[0]) for host, _ in (source, destination)]
    ports = [port for _, port in (source, destination)]
    is_ipv6 = hosts[0].version == 6  # noqa: PLR2004 - of IP
    if version == "v1":
        words = ["PROXY", "TCP6" if is_ipv6 else "TCP4", *map(str, hosts), *map(str, ports)]
        return " ".join(words).encode("ascii") + b"\r\n"
    family = 0x21 if is_ipv6 else 0x11
    addresses = _ADDRESS_FORMATS[family].pack(*(host.packed for host in hosts), *ports)
    return _V2_HEAD.pack(_V2, _PROXY, family, len(addresses)) + addresses


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says."""

    length: int
    """The header's size in bytes; the client's own bytes follow."""
    source: tuple[str, int] | None
    """The client's address; None: the connection is the balancer's own."""


def parse(data: bytes) -> Header | None:
    """Return the header with which `data` begins; None if only a part of it has come.

    Raises:
        ValueError: `data` does not begin with a valid header; the message says why, and quotes
            nothing.
    """
    if data[: len(_V2)] == _V2[: len(data)]:
        return _version_2(data)
    if data[: len(_V1)] == _V1[: len(data)]:
        return _version_1(data)
    raise ValueError("no PROXY header")


def _version_1(data: bytes) -> Header | None:
    line, end, _ = data[:_V1_MAX_BYTES].partition(b"\r\n")
    if not end:
        if len(data) >= _V1_MAX_BYTES:
            raise ValueError("a PROXY header that is too long")
        return None
    length = len(line) + len(end)
    words = line.decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":
        return Header(length, None)
    try:
        _, family, source, destination, *ports = words
        if "%" in source + destination:  # a zone of the balancer's machine, which may be any text
            raise ValueError
        kind = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[family]
        client = kind(source)
        kind(destination)
        port, _ = map(_port, ports)
    except (ValueError, KeyError):
        raise ValueError("a PROXY header that is not well formed") from None
    return Header(length, (_canonical(client), port))


def _canonical(address: Any) -> str:
    """Return the canonical text of an address: ``::ffff:192.0.2.1`` is an IPv4 address."""
    return str(getattr(address, "ipv4_mapped", None) or address)


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > _HIGHEST_PORT:
        raise ValueError
    return int(text)


def _version_2(data: bytes) -> Header | None:
    if len(data) < _V2_HEAD.size:
        return None
    _, command, family, size = _V2_HEAD.unpack_from(data)
    length = _V2_HEAD.size + size
    if command not in (_LOCAL, _PROXY):
        raise ValueError("a PROXY header of another version or command")
    if length > MAX_HEADER_BYTES:
        raise ValueError("a PROXY header that is too long")
    address_format = _ADDRESS_FORMATS.get(family)
    if command == _PROXY:
        if address_format is None and family not in _FAMILIES_WITHOUT_ADDRESS:
            raise ValueError("a PROXY header for something else than TCP")
        if address_format is not None and size < address_format.size:
            raise ValueError("a PROXY header that is too short for its addresses")
    if len(data) < length:
        return None
    if command == _LOCAL or address_format is None:
        return Header(length, None)
    source, _, port, _ = address_format.unpack_from(data, _V2_HEAD.size)
    return Header(length, (_canonical(ipaddress.ip_address(source)), port))
