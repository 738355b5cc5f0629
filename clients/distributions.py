"""Sizes and pauses that vary: what is drawn from, and how people type it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from echoserver.units import parse_duration, parse_whole

LARGEST = 16 * 2**20  # bytes of one message
_DRAWN = 1024  # sizes of a connection, after which they repeat


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large messages are, in bytes."""

    smallest: int
    largest: int
    listed: tuple[int, ...] = ()
    """Each as likely as any other; empty: all from the smallest to the largest."""

    @property
    def fixed(self) -> bool:
        """All have the same size."""
        return self.smallest == self.largest

    def draw(self, seed: str) -> list[int]:
        """Return sizes in an order that follows from `seed`."""
        if self.fixed:
            return [self.smallest]
        source = random.Random(seed)
        if self.listed:
            return source.choices(self.listed, k=_DRAWN)
        return [source.randint(self.smallest, self.largest) for _ in range(_DRAWN)]


def parse_sizes(text: str | int) -> Sizes:
    """Return the sizes that `text` names: ``64``, ``uniform:1:4096``, ``file:sizes.txt``.

    A file has a size in each line; one that shall come up more often stands there more often.

    Raises:
        ValueError: It names none; the message completes "X must be ...".
    """
    words = str(text).split(":")
    listed: tuple[int, ...] = ()
    match words:
        case ["uniform", first, last]:
            smallest, largest = parse_whole(first), parse_whole(last)
        case ["file", *parts] if parts != [""]:
            listed = _read_sizes(":".join(parts))
            smallest, largest = min(listed), max(listed)
        case [size]:
            smallest = largest = parse_whole(size)
        case _:
            raise ValueError("a number of bytes, uniform:SMALLEST:LARGEST, or file:PATH")
    if not 1 <= smallest <= largest <= LARGEST:
        raise ValueError("of 1 to 16Mi bytes, the smallest first")
    return Sizes(smallest, largest, listed)


def _read_sizes(path: str) -> tuple[int, ...]:
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        sizes = tuple(parse_whole(line) for line in lines if line.strip())
    except OSError as error:
        raise ValueError(f"a file that can be read, and {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"a file with a size in each line, and {path} is not: {error}") from None
    if not sizes:
        raise ValueError(f"a file with a size in each line, and {path} has none")
    return sizes


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long a connection thinks between a reply and its next message, in seconds."""

    shape: str
    shortest: float
    longest: float

    def draw(self, seed: str) -> Iterator[float]:
        """Return pauses without end, that follow from `seed`."""
        source = random.Random(seed)
        while True:
            if self.shape == "exp":
                yield source.expovariate(1 / self.longest)
            else:
                yield source.uniform(self.shortest, self.longest)


def parse_pauses(text: str) -> Pauses:
    """Return the pauses that `text` names: ``5ms``, ``exp:5ms`` (the mean), ``uniform:1ms:9ms``.

    Raises:
        ValueError: It names none; the message completes "X must be ...".
    """
    match text.split(":"):
        case ["exp", mean]:
            shape, shortest, longest = "exp", 0.0, parse_duration(mean)
        case ["uniform", first, last]:
            shape, shortest, longest = "uniform", parse_duration(first), parse_duration(last)
        case [pause]:
            shape, shortest = "uniform", parse_duration(pause)
            longest = shortest
        case _:
            raise ValueError("a duration, exp:MEAN, or uniform:SHORTEST:LONGEST")
    if not 0 <= shortest <= longest or not longest:
        raise ValueError("more than 0, the shortest first")
    return Pauses(shape, shortest, longest)
