"""The options of handlers: ``--handler-option KEY=VALUE``.

A handler's options are the named parameters of its constructor; their defaults and annotations
(``float``, ``int``, ``bool``, ``str``) say what they take.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from echoserver.errors import ConfigError, did_you_mean
from echoserver.handlers import Handler

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {float: "a number", int: "a whole number", bool: "yes or no", str: "a text"}


def bind_options(
    handler: type[Handler], options: Iterable[tuple[str, str]], source: str
) -> Callable[[], Handler]:
    """Return a function that makes handlers of a class with these options.

    Raises:
        ConfigError: An option is unknown, malformed, missing, or rejected by the constructor.
    """
    parameters = _parameters(handler)
    values: dict[str, Any] = {}
    for key, text in options:
        name = key.replace("-", "_")
        if name not in parameters:
            option_names = ", ".join(parameters) or "none"
            raise ConfigError(
                f"{source}: the handler {handler.__qualname__} has no option {key!r}"
                f"{did_you_mean(name, parameters)} (its options: {option_names})"
            )
        if name in values:
            raise ConfigError(f"{source}: {key} is given twice")
        kind = _kind(parameters[name])
        try:
            values[name] = _parse(text, kind)
        except ValueError:
            description = _KINDS.get(kind, "something else")
            raise ConfigError(f"{source}: {key} must be {description}, not {text!r}") from None
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            raise ConfigError(
                f"the handler {handler.__qualname__} needs its option {name!r}: "
                f"--handler-option {name}=VALUE"
            )
    if not values:
        return handler
    make = partial(handler, **values)
    try:
        make()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a constructor may raise anything
        arguments = ", ".join(f"{key}={text}" for key, text in options)
        raise ConfigError(f"{source}: {arguments}: {error}") from None
    return make


def _parameters(handler: type[Handler]) -> Mapping[str, inspect.Parameter]:
    if handler.__init__ is object.__init__:
        return {}
    try:
        parameters = inspect.signature(handler).parameters
    except (TypeError, ValueError):  # a constructor in C may have no signature
        return {}
    option_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter for name, parameter in parameters.items() if parameter.kind in option_kinds
    }


def _kind(parameter: inspect.Parameter) -> Any:
    """Return the type of an annotation that is one of `_KINDS` or its name, else the annotation."""
    names = {kind.__name__: kind for kind in _KINDS}
    return names.get(str(parameter.annotation), parameter.annotation)


def _parse(text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ValueError
        return _WORDS[text.lower()]
    if kind in {int, float}:
        return kind(text)
    return text
