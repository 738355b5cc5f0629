"""A TCP echo server whose concurrency model is a swappable backend.

Serve in this process, until a signal::

    import echoserver
    exit_code = echoserver.serve(echoserver.Config(backend="gevent", port=0))

Run one beside your test::

    with echoserver.spawn(backend="gevent") as server:
        socket.create_connection(server.address)

Write your own concurrency model or your own answer: subclass `Backend` or `Handler`,
and name the class as ``--backend path/to/file.py:Class``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from echoserver.admission.listener import Listener
    from echoserver.backends import Backend
    from echoserver.config import Config, load_config
    from echoserver.conversation.connection import Connection
    from echoserver.errors import BootError, ConfigError, EchoServerError
    from echoserver.flow import Readable, Writable
    from echoserver.handlers import Handler, Sleep, Step
    from echoserver.registry import BackendInfo, available_backends, load_backend, load_handler
    from echoserver.runtime.server import EchoServer, serve
    from echoserver.service import Service
    from echoserver.spawning import SpawnedServer, spawn

__all__ = [
    "Backend",
    "BackendInfo",
    "BootError",
    "Config",
    "ConfigError",
    "Connection",
    "EchoServer",
    "EchoServerError",
    "Handler",
    "Listener",
    "Readable",
    "Service",
    "Sleep",
    "SpawnedServer",
    "Step",
    "Writable",
    "available_backends",
    "load_backend",
    "load_config",
    "load_handler",
    "serve",
    "spawn",
]

# Resolved on first use: `echoclient --help` must not pay for what only a server needs.
_HOME = {
    "Backend": "backends",
    "BackendInfo": "registry",
    "BootError": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "Connection": "conversation.connection",
    "EchoServer": "runtime.server",
    "EchoServerError": "errors",
    "Handler": "handlers",
    "Listener": "admission.listener",
    "Readable": "flow",
    "Service": "service",
    "Sleep": "handlers",
    "SpawnedServer": "spawning",
    "Step": "handlers",
    "Writable": "flow",
    "available_backends": "registry",
    "load_backend": "registry",
    "load_config": "config",
    "load_handler": "registry",
    "serve": "runtime.server",
    "spawn": "spawning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
