"""The types of options: numbers, rates, and texts that a function parses."""

from collections.abc import Callable
from typing import Any

import click

from clients.distributions import parse_sizes
from echoserver.units import parse_quantity, parse_whole
from loadtest.errors import usage

MAX_PIPELINED = 1000

MAX_CONNECTIONS = 65535  # a message's header has four hexadecimal digits for it


class WholeNumber(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """A whole number, with a prefix where it has one: 400, 5k, 64KiB."""

    name = "number"

    def __init__(self, least: int = 1, most: int | None = None) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            number = parse_whole(value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)
        if number < self._least or (self._most is not None and number > self._most):
            upto = "" if self._most is None else f" to {self._most}"
            self.fail(f"{value!r} is not in the range from {self._least}{upto}", param, ctx)
        return number


class ParsedText(click.ParamType):  # type: ignore[type-arg] # likewise
    """A text that a function can parse, as the value that the function returns."""

    name = "text"

    def __init__(self, function: Callable[[str], Any]) -> None:
        self._function = function

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of the text; a value that is not a text is returned unchanged."""
        if not isinstance(value, str):
            return value
        try:
            return self._function(value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)


class ValidatedText(ParsedText):
    """A text that a function understands, kept as it was typed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        super().convert(value, param, ctx)
        return str(value)


class Rate(click.ParamType):  # type: ignore[type-arg] # likewise
    """Messages a second: 5000, 5k, or 1k:20k for a ramp."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float | None]:
        """Return the first rate, and the last one of a ramp."""
        if isinstance(value, tuple):
            return value
        first, colon, last = str(value).partition(":")
        try:
            rates = parse_quantity(first), parse_quantity(last) if colon else None
        except ValueError as error:
            self.fail(f"{value!r} is not {error}; a ramp is typed as 1000:20000", param, ctx)
        if not all(rate is None or rate > 0 for rate in rates):
            self.fail(f"{value!r} is not more than 0 messages a second", param, ctx)
        return rates


def positive(value: float, option: str) -> float:
    """Refuse an option whose value is zero or less."""
    if not value:
        usage(f"{option} must be more than 0")
    return value


def read_share(text: str) -> float:
    """Parse a share such as ``10%`` or ``0.1``.

    Raises:
        ValueError: It is not a share; the message completes "X must be ...".
    """
    words = text.strip()
    try:
        share = float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 10:  # noqa: PLR2004 - ten times worse is not a threshold
        raise ValueError("a share such as 10% or 0.1")
    return share


def read_sweep(text: str) -> tuple[str, list[Any]]:
    """Parse a sweep such as ``NAME=VALUE,VALUE...``.

    Raises:
        ValueError: It is not a sweep; the message completes "X must be ...".
    """

    def upto(most: int) -> Callable[[str], int]:
        def read(value: str) -> int:
            if (number := parse_whole(value)) > most:
                raise ValueError(f"values of {most} at most")
            return number

        return read

    name, _, values = text.partition("=")
    readers: dict[str, Any] = {
        "connections": upto(MAX_CONNECTIONS),
        "size": lambda value: (parse_sizes(value), value)[1],
        "pipeline": upto(MAX_PIPELINED),
        "rate": parse_quantity,
    }
    if name not in readers or not values:
        raise ValueError(
            "NAME=VALUES, for example connections=10,100,1000; or size, pipeline, rate"
        )
    numbers = [readers[name](value) for value in values.split(",")]
    if not all(numbers):
        raise ValueError("a list of values, each more than 0")
    return name, list(dict.fromkeys(numbers))
