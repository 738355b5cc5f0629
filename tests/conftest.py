"""Which backends the conformance suite runs over, and how a test starts a server."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import echoserver
from tests import wire

BUILTIN = ("process", "thread", "pool", "gevent")
HANDLERS: dict[str, Callable[[bytes], bytes]] = {"echo": bytes, "upper": bytes.upper}

StartServer = Callable[..., echoserver.SpawnedServer]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="run the conformance suite against this backend (a name, package.module:Class or "
        "path/to/file.py:Class); may be repeated; default: every built-in one",
    )
    parser.addoption(
        "--patience",
        type=float,
        default=wire.patience,
        metavar="SECONDS",
        help="how long a check waits for bytes that do not come",
    )


def pytest_configure(config: pytest.Config) -> None:
    wire.patience = config.getoption("--patience")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend") or BUILTIN
        metafunc.parametrize("backend", chosen, ids=[name.rpartition(":")[2] for name in chosen])
    if "handler" in metafunc.fixturenames:
        # What is done with the bytes hardly matters to how connections live and end.
        every = getattr(metafunc.module, "EVERY_HANDLER", False)
        marks = () if every else pytest.mark.slow
        names = ["echo", pytest.param("upper", marks=marks)]
        metafunc.parametrize("handler", names)


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    yield
    while wire.opened:
        wire.opened.pop().close()


@pytest.fixture
def concurrency(backend: str) -> Callable[..., int | None]:
    """How many clients the backend serves at a time under given settings; None: no bound."""

    def ask(**settings: Any) -> int | None:
        return echoserver.load_backend(backend).concurrency(echoserver.Config(**settings))

    return ask


@pytest.fixture
def start(backend: str, handler: str) -> Iterator[StartServer]:
    """Start servers of the backend at hand; each must have left without a traceback."""
    servers: list[echoserver.SpawnedServer] = []

    def start_server(**settings: Any) -> echoserver.SpawnedServer:
        server = echoserver.spawn(**{"backend": backend, "handler": handler, **settings})
        servers.append(server)
        return server

    yield start_server
    for server in servers:
        if server.process.returncode is None:
            server.kill()
        assert "Traceback" not in server.stderr, server.stderr


@pytest.fixture
def server(start: StartServer) -> echoserver.SpawnedServer:
    """A server of the backend at hand, with everything at its default."""
    return start()
