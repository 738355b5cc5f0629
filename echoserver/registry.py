"""Names of backends and handlers, resolved on use: ``--backend thread`` never imports gevent."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from echoserver.errors import ConfigError
from echoserver.plugins import BACKENDS, HANDLERS, entry_points_of, import_plugin, locate

if TYPE_CHECKING:
    from echoserver.backends import Backend
    from echoserver.handlers import Handler

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One line of ``--list-backends``."""

    name: str
    summary: str
    """What the model is, in one line."""
    cost: str
    """What a connection costs."""
    available: bool
    hint: str
    """Why the backend is not available, and what to install; empty where it is."""


def available_backends() -> list[BackendInfo]:
    """Describe all named backends: the built-in ones, then those of installed plugins."""
    infos = []
    for name in dict.fromkeys([*BACKENDS, *entry_points_of("backends")]):
        try:
            backend = load_backend(name)
        except ConfigError as error:
            infos.append(BackendInfo(name, "", "", available=False, hint=str(error)))
        else:
            infos.append(BackendInfo(name, backend.summary, backend.cost, available=True, hint=""))
    return infos


def load_backend(spec: str, source: str = "--backend") -> "type[Backend]":
    """Return the backend class that `spec` names.

    Args:
        spec: A name, ``package.module:Class`` or ``path/to/file.py:Class``.
        source: What `spec` was read from, for the error message.

    Raises:
        ConfigError: No backend has that name, it cannot be imported, or it is not a `Backend`.
    """
    from echoserver.backends import Backend

    return _load(spec, source, "backend", BACKENDS, Backend)  # type: ignore[type-abstract] # a subclass is returned


def load_handler(spec: str, source: str = "--handler") -> "type[Handler]":
    """Return the handler class that `spec` names; see `load_backend`."""
    from echoserver.handlers import Handler

    return _load(spec, source, "handler", HANDLERS, Handler)  # type: ignore[type-abstract] # a subclass is returned


def _load(spec: str, source: str, kind: str, builtin: dict[str, str], base: type[_T]) -> type[_T]:
    location, class_name = locate(spec, source, kind, builtin)
    target = import_plugin(location, source, kind, spec)
    for attribute in class_name.split("."):
        target = getattr(target, attribute, None)
    if not isinstance(target, type):
        raise ConfigError(f"{source}: {location} has no class {class_name}")
    if not issubclass(target, base):
        base_name = f"echoserver.{base.__name__}"
        raise ConfigError(f"{source}: {class_name} in {location} is not a subclass of {base_name}")
    if inspect.isabstract(target):
        method_names = ", ".join(sorted(getattr(target, "__abstractmethods__", ())))
        raise ConfigError(f"{source}: {spec} cannot be used: it does not define {method_names}")
    return target
