"""The server's settings: declared once, parsed, merged from all their sources, and reloaded."""

from echoserver.config.loading import ENVIRONMENT_PREFIX, load_config, reload_config
from echoserver.config.parsers import Network
from echoserver.config.settings import (
    Config,
    LogLevel,
    Reload,
    Setting,
    option_name,
    settings,
)

__all__ = [
    "ENVIRONMENT_PREFIX",
    "Config",
    "LogLevel",
    "Network",
    "Reload",
    "Setting",
    "load_config",
    "option_name",
    "reload_config",
    "settings",
]
