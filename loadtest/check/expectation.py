"""The replies that a server owes, and the content to send it."""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

_LINE = 100  # bytes
_PRINTABLE = (string.ascii_letters + string.digits + "-_").encode() * 4  # 256 of them


@dataclass(frozen=True, slots=True)
class Expectation:
    """The replies that a server owes."""

    name: str
    answer: Callable[[bytes], bytes]
    by_line: bool = False
    """Only complete lines are owed an answer."""


EXPECTATIONS = {
    "echo": Expectation("echo", bytes),
    "upper": Expectation("upper", bytes.upper),
    "line": Expectation("line", bytes, by_line=True),
}


def text(stream: random.Random, size: int) -> bytes:
    """Return `size` random bytes of printable ASCII, in lines, the last one complete.

    So a server that decodes, or that waits for a newline, fails only the check for that mistake.
    """
    content = bytearray(stream.randbytes(size).translate(_PRINTABLE))
    content[_LINE - 1 :: _LINE] = b"\n" * (size // _LINE)
    content[-1:] = b"\n"
    return bytes(content)
