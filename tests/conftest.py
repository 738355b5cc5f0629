"""Which backends the conformance suite runs over, and how a test starts a server."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import echoserver
from clients.tls import Trust
from echoserver import plugins
from tests.support import certificates, wire

BUILTIN = tuple(plugins.BACKENDS)
REPRESENTATIVE = ("process", "thread", "gevent", "selector")
# What is the core's, and the same for all, is tried over one that blocks, in a process of its own,
# and one that does not: by default over the last, in CI over both.
EXEMPLARS = ("process", "selector")
HANDLERS: dict[str, Callable[[bytes], bytes]] = {"echo": bytes, "upper": bytes.upper}

StartServer = Callable[..., echoserver.SpawnedServer]

# What a script starts in the background has SIGINT ignored, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite what golden outputs are compared with; look at the difference then",
    )
    parser.addoption(
        "--stress-results", metavar="FILE", help="append what came of each fault, as JSON"
    )
    parser.addoption(
        "--shard", metavar="K/N", help="run only the K-th of N parts of what would be run"
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ["XDG_CACHE_HOME"] = "/nowhere"  # what was calibrated here decides nothing in a test
    # Thousands of interpreters are started, and none should compile the same modules again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    wire.patience = config.getoption("--patience")
    for backend in config.getoption("--backend") or ():
        try:
            echoserver.load_backend(backend)
        except echoserver.ConfigError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)  # before what is not asked for is left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("ci"):
            item.add_marker("slow")
    if shard := config.getoption("--shard"):
        number, _, count = shard.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise pytest.UsageError("--shard must be K/N, such as 1/4")
        # Not every N-th: the cells of the matrix repeat by fours, and those at full size would
        # all be in one part.
        items[:] = [
            item
            for index, item in enumerate(items)
            if (index + index // int(count)) % int(count) == int(number) - 1
        ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    fixtures = metafunc.fixturenames
    given = metafunc.config.getoption("--backend")
    if "workers" in fixtures:
        _over_the_suite(metafunc, given)
    elif "backend" in fixtures:
        chosen = [
            pytest.param(one, id=_id(one), marks=_marks(bool(given) or one in REPRESENTATIVE))
            for one in given or BUILTIN
        ]
        metafunc.parametrize("backend", chosen)
    elif "exemplar" in fixtures:
        metafunc.parametrize(
            "exemplar",
            [
                pytest.param(one, id=_id(one), marks=_marks(*_tiers(one, given)))
                for one in given or BUILTIN
            ],
        )


def _tiers(exemplar: str, given: list[str] | None) -> tuple[bool, bool]:
    """Tell whether something of the core's is tried with an exemplar by default, and by CI."""
    return bool(given) or exemplar == EXEMPLARS[-1], exemplar in EXEMPLARS


def _marks(default: bool, ci: bool = True) -> tuple[pytest.MarkDecorator, ...]:  # noqa: FBT001, FBT002 - two tiers
    """Return what puts a case into the default tests, among those that CI adds, or neither."""
    return () if default else (pytest.mark.ci,) if ci else (pytest.mark.slow,)


def _over_the_suite(metafunc: pytest.Metafunc, given: list[str] | None) -> None:
    """Run a check of the conformance suite over backends, layouts, TLS, UNIX sockets and handlers.

    All of it over all of them takes half an hour. So by default: all of it over the exemplars, and
    the checks marked `core` over the representative backends, over the exemplars in two workers,
    and over one of them with TLS and over a UNIX socket (what is about TLS alone: over the
    representative ones). CI adds the core over every backend, over the representative ones in two
    workers, over both exemplars with TLS and over a UNIX socket, and, in a module that says
    EVERY_HANDLER, over both handlers in one worker: what is done with the bytes hardly matters to
    how connections live and end.
    """
    has = metafunc.definition.get_closest_marker
    core, plain, secure, tcp = (
        has(mark) is not None for mark in ("core", "plain", "secure", "tcp")
    )
    every_handler = getattr(metafunc.module, "EVERY_HANDLER", False)
    names = [
        one
        for one in ("backend", "workers", "tls", "unix", "handler")
        if one in metafunc.fixturenames
    ]
    # Of TLS and UNIX sockets, one at a time.
    streams = [] if secure else [(False, False)]
    if "tls" in names and not plain:
        streams.append((True, False))
    if "unix" in names and core and not (tcp or secure):
        streams.append((False, True))
    handlers = tuple(HANDLERS) if "handler" in names else ("echo",)
    params = []
    for backend, (tls, unix), workers, handler in itertools.product(
        given or BUILTIN, streams, (None, 2), handlers
    ):
        if unix and handler != "echo":
            continue
        alone = workers is None
        central = bool(given) or backend in EXEMPLARS
        representative = bool(given) or backend in REPRESENTATIVE
        if secure:
            default, ci = alone and representative, alone
        elif tls or unix:
            ci = alone and core and central
            default = ci and (bool(given) or backend == EXEMPLARS[-1])
        elif alone:
            default, ci = central or (core and representative), core or central
        else:
            default, ci = core and central, core and representative
        if handler != "echo":
            default, ci = False, ci and every_handler and alone
        if given:
            default = ci
        values = {
            "backend": backend,
            "workers": workers,
            "tls": tls,
            "unix": unix,
            "handler": handler,
        }
        layout = _id(backend) + ("" if alone else "-2workers")
        layout += ("-tls" if tls else "") + ("-unix" if unix else "")
        params.append(
            pytest.param(
                *(values[one] for one in names),
                id=f"{layout}-{handler}" if "handler" in names else layout,
                marks=_marks(default, ci),
            )
        )
    metafunc.parametrize(names, params)


def _id(backend: str) -> str:
    return backend.rpartition(":")[2]


@pytest.fixture(params=[pytest.param("threads", marks=pytest.mark.ci), "epoll"])
def engine(request: pytest.FixtureRequest) -> str:
    """Which load client does it: they must agree."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    yield
    while wire.opened:
        wire.opened.pop().close()


@pytest.fixture
def concurrency(backend: str, workers: int | None) -> Callable[..., int | None]:
    """How many clients the backend serves at a time under given settings; None: no bound."""

    def ask(**settings: Any) -> int | None:
        each = echoserver.load_backend(backend).concurrency(echoserver.Config(**settings))
        return each and each * (workers or 1)

    return ask


@pytest.fixture
def room(concurrency: Callable[..., int | None]) -> Callable[[int], int]:
    """Of so many clients, how many are served at a time with everything at its default."""
    return lambda clients: min(clients, concurrency() or clients)


@pytest.fixture
def start(
    backend: str,
    workers: int | None,
    tls: bool,  # noqa: FBT001 - a fixture
    unix: bool,  # noqa: FBT001 - likewise
    handler: str,
) -> Iterator[StartServer]:
    """Start servers of the backend at hand; each must have left without a traceback."""
    servers: list[echoserver.SpawnedServer] = []
    secured = {"tls_cert": certificates.SERVERS.issue()} if tls else {}
    wire.trust = Trust(certificates.SERVERS.cert) if tls else None
    # Not in tmp_path, whose length may be more than a socket's name can have.
    folder = tempfile.mkdtemp() if unix else ""

    def start_server(**settings: Any) -> echoserver.SpawnedServer:
        where = {"host": f"unix:{folder}/{len(servers)}"} if unix else {}
        layout = {"backend": backend, "workers": workers, "handler": handler}
        server = echoserver.spawn(**{**layout, **where, **secured, **settings})
        servers.append(server)
        return server

    yield start_server
    wire.trust = None
    shutil.rmtree(folder, ignore_errors=True)
    for server in servers:
        if server.process.returncode is None:
            server.kill()
        assert "Traceback" not in server.stderr, server.stderr


@pytest.fixture
def server(start: StartServer) -> echoserver.SpawnedServer:
    """A server of the backend at hand, with everything at its default."""
    return start()
