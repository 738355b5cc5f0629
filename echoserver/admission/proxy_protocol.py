"""The PROXY protocol: by whom a connection was really made, when a balancer passes it on.

Without I/O: what has come is looked at, and is a header, the beginning of one, or wrong. Of both
versions of "The PROXY protocol" (HAProxy, 2010-2020, sections 2.1 and 2.2), the strict reading:
a balancer that is trusted to send it can be expected to send it right.
"""

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Any

LONGEST = 4096
"""Bytes of a header that are still believed: version 2 could have 65,551."""

_V1, _V1_LONGEST = b"PROXY ", 107
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXIED = 0x20, 0x21
_PORT = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_HIGHEST_PORT = 65535
# Family and transport → how a source and a destination are packed. What is not there, such as
# datagrams, cannot have led to a connection.
_PACKED = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}
_UNKNOWN = {0x00, 0x31}  # unspecified, and Unix streams: there is no address to know it by

LOCAL = _V2_HEAD.pack(_V2, _LOCAL, 0, 0)
"""The header of a balancer's own connection, such as a health check."""


LOCAL_V1 = b"PROXY UNKNOWN\r\n"
"""The same in version 1."""


def encode(version: str, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """Return the header of a connection that is passed on.

    Args:
        version: ``v1`` or ``v2``.
        source: The client's address and port.
        destination: Those that it connected to; of the same family.
    """
    hosts = [ipaddress.ip_address(host.partition("%")[0]) for host, _ in (source, destination)]
    ports = [port for _, port in (source, destination)]
    six = hosts[0].version == 6  # noqa: PLR2004 - of IP
    if version == "v1":
        words = ["PROXY", "TCP6" if six else "TCP4", *map(str, hosts), *map(str, ports)]
        return " ".join(words).encode("ascii") + b"\r\n"
    family = 0x21 if six else 0x11
    packed = _PACKED[family].pack(*(host.packed for host in hosts), *ports)
    return _V2_HEAD.pack(_V2, _PROXIED, family, len(packed)) + packed


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says."""

    length: int
    """Its bytes; after them the client's own begin."""
    source: tuple[str, int] | None
    """The client's address; None: the balancer that sent the header speaks for itself."""


def parse(data: bytes) -> Header | None:
    """Return the header with which `data` begins; None where there is only a part of it yet.

    Raises:
        ValueError: It is none; the message says why, and quotes nothing.
    """
    if data[: len(_V2)] == _V2[: len(data)]:
        return _version_2(data)
    if data[: len(_V1)] == _V1[: len(data)]:
        return _version_1(data)
    raise ValueError("no PROXY header")


def _version_1(data: bytes) -> Header | None:
    line, end, _ = data[:_V1_LONGEST].partition(b"\r\n")
    if not end:
        if len(data) >= _V1_LONGEST:
            raise ValueError("a PROXY header that is too long")
        return None
    length = len(line) + len(end)
    words = line.decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":
        return Header(length, None)
    try:
        _, family, source, destination, *ports = words
        if "%" in source + destination:  # a zone is of the balancer's machine, and any text
            raise ValueError
        kind = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[family]
        client = kind(source)
        kind(destination)
        port, _ = map(_port, ports)
    except (ValueError, KeyError):
        raise ValueError("a PROXY header that is not well formed") from None
    return Header(length, (_spelled(client), port))


def _spelled(address: Any) -> str:
    """Return an address in its one spelling: ``::ffff:192.0.2.1`` is one of IPv4."""
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
    if command not in (_LOCAL, _PROXIED):
        raise ValueError("a PROXY header of another version or command")
    if length > LONGEST:
        raise ValueError("a PROXY header that is too long")
    packed = _PACKED.get(family)
    if command == _PROXIED:
        if packed is None and family not in _UNKNOWN:
            raise ValueError("a PROXY header for something else than TCP")
        if packed is not None and size < packed.size:
            raise ValueError("a PROXY header that is too short for its addresses")
    if len(data) < length:
        return None
    if command == _LOCAL or packed is None:
        return Header(length, None)
    source, _, port, _ = packed.unpack_from(data, _V2_HEAD.size)
    return Header(length, (_spelled(ipaddress.ip_address(source)), port))
