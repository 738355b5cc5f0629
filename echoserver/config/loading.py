"""A configuration from all its sources, and the same again while the server runs."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from echoserver.config.settings import Config, Reload, option_name, settings, shown
from echoserver.errors import ConfigError, did_you_mean, suggestion
from echoserver.system.files import read_file

ENVIRONMENT_PREFIX = "ECHOSERVER_"

# What Kubernetes tells every pod of services that are called echoserver, or echoserver-metrics.
_INJECTED = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|\w+_PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)


def reload_config(config: Config, *, in_workers: bool) -> tuple[Config, list[str]]:
    """Read again what `config` was read from, and take over what can be changed at run time.

    Args:
        config: What holds now.
        in_workers: New processes will serve by it, and not this one.

    Returns:
        The configuration from now on, and the settings whose change must wait for a restart.

    Raises:
        ConfigError: The new one is not valid.
    """
    if config.origin is None:
        return config, []
    options, file = config.origin
    fresh = load_config(options, file=file, reload=True)
    kept: dict[str, Any] = {}
    waiting: list[str] = []
    for setting in settings():
        if setting.reload is Reload.IN_PLACE or (in_workers and setting.reload):
            continue
        kept[setting.name] = getattr(config, setting.name)
        if kept[setting.name] != getattr(fresh, setting.name):
            waiting.append(option_name(setting.name))
    return replace(fresh, **kept), waiting


def load_config(
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | os.PathLike[str] | None = None,
    *,
    reload: bool = False,
) -> Config:
    """Merge command-line `options`, the `environment` and a TOML `file` over the defaults.

    Args:
        options: Setting → text or value; a None counts as not given.
        environment: Variables to read ``ECHOSERVER_*`` from; default: this process's own.
        file: TOML file; default: what ``ECHOSERVER_CONFIG`` names.
        reload: Read regular files only: a server goes on meanwhile.

    Raises:
        ConfigError: A value is not what its setting takes, or the file cannot be read.
            The message names the source: ``--port``, ``ECHOSERVER_PORT``, ``server.toml: port``.
    """
    environment = os.environ if environment is None else environment
    given = {
        name: value for name, value in (options or {}).items() if value is not None and value != ()
    }
    warnings: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    layers = [
        _from_file(
            file if file is not None else environment.get(ENVIRONMENT_PREFIX + "CONFIG") or None,
            reload=reload,
        ),
        _from_environment(environment, warnings),
        {name: (option_name(name), value) for name, value in given.items()},
    ]
    for layer in layers:
        for name, (source, value) in layer.items():
            values[name], sources[name] = value, source
    return Config(**values, sources=sources, origin=(given, file), warnings=tuple(warnings))


def _from_environment(
    environment: Mapping[str, str], warnings: list[str]
) -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    for setting in settings():
        variable = ENVIRONMENT_PREFIX + setting.name.upper()
        value = environment.get(variable, "")
        if not value:  # compose files pass ${VARIABLE:-} along as an empty text
            continue
        if setting.name == "port" and value.startswith(("tcp://", "udp://", "sctp://")):
            # Kubernetes describes a service called "echoserver" to every pod in this very name.
            warnings.append(
                f"{variable}={shown(value)} looks like a service description that Kubernetes "
                "injected, not like a port; it is ignored"
            )
            continue
        found[setting.name] = (variable, value)
    warnings += _unknown_variables(environment)
    return found


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting's and is none."""
    hidden = {one.name.upper() for one in settings() if one.hidden}
    shown = ["CONFIG", *(one.name.upper() for one in settings() if one.name.upper() not in hidden)]
    found = []
    for variable, value in sorted(environment.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or not value or name in hidden or name in shown:
            continue
        if not _INJECTED.fullmatch(f"{name}={value}"):
            hint = suggestion(name.upper(), shown).replace("'", f"'{ENVIRONMENT_PREFIX}", 1)
            found.append(f"{variable} is not a setting{hint}")
    return found


def _from_file(file: str | os.PathLike[str] | None, *, reload: bool) -> dict[str, tuple[str, Any]]:
    if file is None:
        return {}
    import tomllib  # noqa: PLC0415 - only where there is a file

    try:
        table = tomllib.loads(read_file(file, reload=reload).decode("utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot read the configuration file {file}: {reason}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration file {file} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration file {file} is not valid TOML: {error}") from None
    known = {setting.name: setting for setting in settings() if not setting.hidden}
    found: dict[str, tuple[str, Any]] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            table_hint = "; settings stand at the top level" if isinstance(value, dict) else ""
            raise ConfigError(
                f"{file}: unknown setting {key!r}{did_you_mean(name, known)}{table_hint}"
            )
        if name in found:
            raise ConfigError(f"{file}: {key!r} is set twice, with a dash and with an underscore")
        # TOML has numbers of its own: port = "80" is a mistake, not a way to write 80.
        if isinstance(value, str) and known[name].whole_number:
            raise ConfigError(f"{file}: {key} must be a whole number, not the text {value!r}")
        found[name] = (f"{file}: {key}", value)
    return found
