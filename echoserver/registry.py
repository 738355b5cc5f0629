"""Names of backends and handlers, resolved on use: ``--backend thread`` never imports gevent."""

import importlib
import importlib.util
import inspect
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from echoserver.config import did_you_mean
from echoserver.errors import ConfigError

if TYPE_CHECKING:
    from echoserver.backends import Backend
    from echoserver.handlers import Handler

BACKENDS = {
    "iterative": "echoserver.backends.iterative:IterativeBackend",
    "process": "echoserver.backends.process:ProcessBackend",
    "thread": "echoserver.backends.thread:ThreadBackend",
    "pool": "echoserver.backends.pool:PoolBackend",
    "selector": "echoserver.backends.selector:SelectorBackend",
    "selector-pool": "echoserver.backends.selector_pool:SelectorPoolBackend",
    "coroutine": "echoserver.backends.coroutine:CoroutineBackend",
    "gevent": "echoserver.backends.gevent:GeventBackend",
    "asyncio": "echoserver.backends.asyncio:AsyncioBackend",
    "uvloop": "echoserver.backends.uvloop:UvloopBackend",
}
HANDLERS = {
    "echo": "echoserver.handlers.echo:EchoHandler",
    "upper": "echoserver.handlers.upper:UpperHandler",
    "sleep": "echoserver.handlers.sleep:SleepHandler",
    "cpu": "echoserver.handlers.cpu:CpuHandler",
}
# Packages that an extra of this project installs.
_EXTRAS = {"uvloop"}

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
    """Where it is not available: why, and what to install."""


def available_backends() -> list[BackendInfo]:
    """Describe the backends that have a name: the built-in ones, then installed plugins'."""
    found = []
    for name in dict.fromkeys([*BACKENDS, *_entry_points("backends")]):
        try:
            backend = load_backend(name)
        except ConfigError as error:
            found.append(BackendInfo(name, "", "", available=False, hint=str(error)))
        else:
            found.append(BackendInfo(name, backend.summary, backend.cost, available=True, hint=""))
    return found


def load_backend(spec: str, source: str = "--backend") -> "type[Backend]":
    """Return the backend class that `spec` names.

    Args:
        spec: A name, ``package.module:Class`` or ``path/to/file.py:Class``.
        source: What `spec` was read from, for the error message.

    Raises:
        ConfigError: There is none, it cannot be imported, or it is no `Backend`.
    """
    from echoserver.backends import Backend

    return _load(spec, source, "backend", BACKENDS, Backend)  # type: ignore[type-abstract] # a subclass is returned


def load_handler(spec: str, source: str = "--handler") -> "type[Handler]":
    """Return the handler class that `spec` names; see `load_backend`."""
    from echoserver.handlers import Handler

    return _load(spec, source, "handler", HANDLERS, Handler)  # type: ignore[type-abstract] # likewise


def _load(spec: str, source: str, kind: str, builtin: dict[str, str], base: type[_T]) -> type[_T]:
    location, class_name = _locate(spec, source, kind, builtin)
    found = _import(location, source, kind, spec)
    for attribute in class_name.split("."):
        found = getattr(found, attribute, None)
    if not isinstance(found, type):
        raise ConfigError(f"{source}: {location} has no class {class_name}")
    if not issubclass(found, base):
        wanted = f"echoserver.{base.__name__}"
        raise ConfigError(f"{source}: {class_name} in {location} is not a subclass of {wanted}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f"{source}: {spec} cannot be used: it does not define {missing}")
    return found


def locate_handler(spec: str, source: str = "--handler") -> tuple[str, str]:
    """Return where the handler class that `spec` names is, and what it is called there.

    Returns:
        A module's name or a file's path, and an attribute, perhaps of an attribute.

    Raises:
        ConfigError: There is none of that name.
    """
    return _locate(spec, source, "handler", HANDLERS)


def _locate(spec: str, source: str, kind: str, builtin: dict[str, str]) -> tuple[str, str]:
    target = builtin.get(spec, spec)
    if ":" not in target:
        plugins = _entry_points(f"{kind}s")
        if spec not in plugins:
            names = [*builtin, *plugins]
            raise ConfigError(
                f"{source}: no {kind} named {spec!r}{did_you_mean(spec, names)}; choose one of "
                f"{', '.join(names)}, or a class as package.module:Class or path/to/file.py:Class"
            )
        target = plugins[spec]
    location, _, class_name = target.rpartition(":")
    return location, class_name


def is_file(location: str) -> bool:
    """Tell whether a plugin's location is a file's path; else it is a module's name."""
    return location.endswith(".py") or "/" in location


def plugin_name(path: str | Path) -> str:
    """Return the name that the module has which is made of a file."""
    return f"echoserver_plugin_{Path(path).stem}"


def _import(location: str, source: str, kind: str, spec: str) -> Any:
    try:
        if is_file(location):
            return _load_file(Path(location), source)
        if not all(part.isidentifier() for part in location.split(".")):
            raise ConfigError(f"{source}: {location!r} is neither a module's name nor a .py file")
        # Last on the path: a plugin beside you is found, yet hides nothing that is installed.
        with suppress(OSError):  # that directory may be gone
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))
        return importlib.import_module(location)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        itself = not is_file(location) and f"{location}.".startswith(f"{error.name}.")
        if error.name and not itself:
            package = error.name.partition(".")[0]
            wanted = f"'echoserver[{package}]'" if package in _EXTRAS else package
            raise ConfigError(
                f"{source}: {kind} {spec!r} needs the package {error.name!r}, which is not "
                f"installed; try: pip install {wanted}"
            ) from None
        raise ConfigError(f"{source}: there is no module {location!r}") from None
    except SyntaxError as error:
        raise ConfigError(
            f"{source}: cannot import {location}: {error.msg} (line {error.lineno})"
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may fail in any way
        raise ConfigError(
            f"{source}: cannot import {location}: {type(error).__name__}: {_one_line(error)}"
        ) from None


def _load_file(path: Path, source: str) -> Any:
    if not path.is_file():
        raise ConfigError(f"{source}: there is no file {path}")
    module = import_file(plugin_name(path), path)
    if module is None:
        raise ConfigError(f"{source}: {path} is not a Python file (its name must end in .py)")
    return module


def import_file(name: str, path: str | Path) -> Any:
    """Return the module of that name that is in this file; None where it is not one of Python's."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    if (folder := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _entry_points(group: str) -> dict[str, str]:
    from importlib.metadata import entry_points

    points = entry_points(group=f"echoserver.{group}")
    return {point.name: f"{point.module}:{point.attr}" for point in points}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"
