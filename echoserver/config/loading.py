"""Loading a configuration from all its sources, and reloading it while the server runs."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from echoserver.config.settings import Config, Reload, option_name, quote_value, settings
from echoserver.errors import ConfigError, did_you_mean, suggestion
from echoserver.system.files import read_file

ENVIRONMENT_PREFIX = "ECHOSERVER_"

# The variables with which Kubernetes describes services to every pod, such as services that are
# called echoserver or echoserver-metrics.
_SERVICE_VARIABLE = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|\w+_PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)


def reload_config(config: Config, *, in_workers: bool) -> tuple[Config, list[str]]:
    """Load `config` again from its sources, and adopt the settings that can change at run time.

    Args:
        config: The current configuration.
        in_workers: New processes, instead of this one, will serve by the result.

    Returns:
        The configuration from now on, and the options whose change takes effect after a restart
        only.

    Raises:
        ConfigError: The new configuration is not valid.
    """
    if config.origin is None:
        return config, []
    options, file = config.origin
    new = load_config(options, file=file, reload=True)
    current_values: dict[str, Any] = {}
    restart_options: list[str] = []
    for setting in settings():
        if setting.reload is Reload.IN_PLACE or (in_workers and setting.reload):
            continue
        value = getattr(config, setting.name)
        current_values[setting.name] = value
        if value != getattr(new, setting.name):
            restart_options.append(option_name(setting.name))
    return replace(new, **current_values), restart_options


def load_config(
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | os.PathLike[str] | None = None,
    *,
    reload: bool = False,
) -> Config:
    """Merge command-line `options`, the `environment` and a TOML `file` over the defaults.

    Args:
        options: Setting → text or value; None means that the option is absent.
        environment: Variables to read ``ECHOSERVER_*`` from; default: those of this process.
        file: TOML file; default: the file that ``ECHOSERVER_CONFIG`` names.
        reload: Read regular files only, because a server must not wait for a pipe meanwhile.

    Raises:
        ConfigError: A setting does not accept its value, or the file cannot be read.
            The message names the source: ``--port``, ``ECHOSERVER_PORT``, ``server.toml: port``.
    """
    environment = os.environ if environment is None else environment
    options = {
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
        {name: (option_name(name), value) for name, value in options.items()},
    ]
    for layer in layers:
        for name, (source, value) in layer.items():
            values[name], sources[name] = value, source
    return Config(**values, sources=sources, origin=(options, file), warnings=tuple(warnings))


def _from_environment(
    environment: Mapping[str, str], warnings: list[str]
) -> dict[str, tuple[str, Any]]:
    values: dict[str, tuple[str, Any]] = {}
    for setting in settings():
        variable = ENVIRONMENT_PREFIX + setting.name.upper()
        value = environment.get(variable, "")
        if not value:  # compose files pass ${VARIABLE:-} on as an empty string
            continue
        if setting.name == "port" and value.startswith(("tcp://", "udp://", "sctp://")):
            # Kubernetes describes a service called "echoserver" to every pod in this very variable.
            warnings.append(
                f"{variable}={quote_value(value)} looks like a service description that Kubernetes "
                "injected, not like a port; it is ignored"
            )
            continue
        values[setting.name] = (variable, value)
    warnings += _unknown_variables(environment)
    return values


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that looks like a setting but is not one."""
    hidden = {one.name.upper() for one in settings() if one.hidden}
    names = ["CONFIG", *(one.name.upper() for one in settings() if one.name.upper() not in hidden)]
    warnings = []
    for variable, value in sorted(environment.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or not value or name in hidden or name in names:
            continue
        if not _SERVICE_VARIABLE.fullmatch(f"{name}={value}"):
            hint = suggestion(name.upper(), names).replace("'", f"'{ENVIRONMENT_PREFIX}", 1)
            warnings.append(f"{variable} is not a setting{hint}")
    return warnings


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
    by_name = {setting.name: setting for setting in settings() if not setting.hidden}
    values: dict[str, tuple[str, Any]] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in by_name:
            table_hint = "; settings stand at the top level" if isinstance(value, dict) else ""
            raise ConfigError(
                f"{file}: unknown setting {key!r}{did_you_mean(name, by_name)}{table_hint}"
            )
        if name in values:
            raise ConfigError(f"{file}: {key!r} is set twice, with a dash and with an underscore")
        # TOML has numbers of its own: port = "80" is a mistake, not a way to write 80.
        if isinstance(value, str) and by_name[name].whole_number:
            raise ConfigError(f"{file}: {key} must be a whole number, not the text {value!r}")
        values[name] = (f"{file}: {key}", value)
    return values
