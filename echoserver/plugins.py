"""Where backends and handlers are: the module or file that a name stands for, and the class in it.

This module imports no backend or handler; `registry` does.
"""

import importlib
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from echoserver.errors import ConfigError, did_you_mean

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


def locate_handler(spec: str, source: str = "--handler") -> tuple[str, str]:
    """Return where the handler class that `spec` names is; see `locate`."""
    return locate(spec, source, "handler", HANDLERS)


def locate(spec: str, source: str, kind: str, builtin: dict[str, str]) -> tuple[str, str]:
    """Return where the class that `spec` names is, and what it is called there.

    Args:
        spec: A name, ``package.module:Class`` or ``path/to/file.py:Class``.
        source: What `spec` was read from, for the error message.
        kind: ``backend`` or ``handler``.
        builtin: The names that need no plugin.

    Returns:
        A module's name or a file's path, and an attribute, perhaps of an attribute.

    Raises:
        ConfigError: No backend or handler has that name.
    """
    target = builtin.get(spec, spec)
    if ":" not in target:
        plugins = entry_points_of(f"{kind}s")
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
    """Return the name of the module that a plugin's file becomes."""
    return f"echoserver_plugin_{Path(path).stem}"


def import_plugin(location: str, source: str, kind: str, spec: str) -> Any:
    """Return the module at a location that `locate` has returned.

    Raises:
        ConfigError: The module does not exist, needs a package that is not installed, or fails
            when it is imported.
    """
    try:
        if is_file(location):
            return _load_file(Path(location), source)
        if not all(part.isidentifier() for part in location.split(".")):
            raise ConfigError(f"{source}: {location!r} is neither a module's name nor a .py file")
        # Last on the path: a plugin in the working directory must not hide an installed module.
        with suppress(OSError):  # that directory may be gone
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))
        return importlib.import_module(location)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        is_plugin_itself = not is_file(location) and f"{location}.".startswith(f"{error.name}.")
        if error.name and not is_plugin_itself:
            package = error.name.partition(".")[0]
            requirement = f"'echoserver[{package}]'" if package in _EXTRAS else package
            raise ConfigError(
                f"{source}: {kind} {spec!r} needs the package {error.name!r}, which is not "
                f"installed; try: pip install {requirement}"
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
    """Import a file as the module `name`, and return it; None if it is not a Python file."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up a class's module there
    if (folder := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def entry_points_of(group: str) -> dict[str, str]:
    """Return the plugins that installed packages declare: name → ``module:Class``."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - large, and mostly not needed

    points = entry_points(group=f"echoserver.{group}")
    return {point.name: f"{point.module}:{point.attr}" for point in points}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"
