"""The command `echoload`."""

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from echoserver import __version__
from echoserver.command import Duration

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.compare import Plan
    from loadtest.pinning import Pinning
    from loadtest.progress import RoundProgress
    from loadtest.report import Result
    from loadtest.targets import Target

EXIT_COULD_NOT_RUN = 1
EXIT_WRONG = 4
EXIT_INTERRUPTED = 128 + signal.SIGINT


@click.group(name="echoload", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def command() -> None:
    """Put echo servers under load, and check every byte that comes back.

    Exit codes: 0 measured; 1 could not run; 2 usage; 4 a reply was wrong, or nothing was
    verified; 130 Ctrl-C, after the table so far.
    """


def _workload_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is asked of a server."""
    options = [
        click.option(
            "-c",
            "--connections",
            type=click.IntRange(1, 65535),
            default=400,
            show_default=True,
            metavar="N",
            help="Connections.",
        ),
        click.option(
            "--size",
            type=click.IntRange(1, 16 * 2**20),
            default=64,
            show_default=True,
            metavar="BYTES",
            help="Size of a message.",
        ),
        click.option(
            "--timeout",
            type=Duration(),
            default="10s",
            show_default=True,
            metavar="DURATION",
            help="For connecting, and for each reply.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["threads", "epoll"]),
            default="threads",
            show_default=True,
            help="The client: a thread for every connection, or one event loop, which is faster.",
        ),
        click.option(
            "--active",
            type=click.IntRange(1, 65535),
            metavar="N",
            help="Connections that ask; the others are open and silent.  [default: all]",
        ),
        click.option(
            "--reconnect-every",
            type=click.IntRange(1),
            metavar="MESSAGES",
            help="Make a connection anew after so many messages.  [default: never]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=1,
            show_default=True,
            metavar="N",
            help="All content, and the order of rounds, follow from it.",
        ),
        click.option("--json", "json_file", metavar="FILE", help="Save the result as JSON."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@command.command()
@click.argument("address", metavar="HOST:PORT")
@click.option(
    "-d", "--duration", type=Duration(), metavar="DURATION", help="How long.  [default: 5s]"
)
@click.option(
    "-n",
    "--messages",
    type=click.IntRange(1),
    metavar="MESSAGES",
    help="How many messages over all connections, instead of how long.",
)
@click.option(
    "--handler",
    default="echo",
    show_default=True,
    metavar="NAME",
    help="What the server answers: echo, upper, sleep, cpu, or a class as path/to/file.py:Class.",
)
@_workload_options
def run(
    *,
    address: str,
    connections: int,
    duration: float | None,
    messages: int | None,
    engine: str,
    json_file: str | None,
    **workload: Any,
) -> int:
    """Put one running server under load."""
    from clients.address import format_address, parse_address
    from clients.load import Workload
    from echoserver import load_handler
    from loadtest import pinning
    from loadtest.measure import measure
    from loadtest.report import Result

    try:
        host, port = parse_address(address)
    except ValueError as error:
        _usage(str(error))
    if duration is not None and messages is not None:
        _usage("-d and -n contradict each other; give one of them")
    if messages is None:
        duration = _positive(duration if duration is not None else 5.0, "-d")
    _resolve(host, port)
    handler = workload.pop("handler")
    load_handler(handler)
    plan = Workload(
        host=host,
        port=port,
        connections=connections,
        duration=duration,
        messages=messages,
        handler=handler,
        timeout=_positive(workload.pop("timeout"), "--timeout"),
        **workload,
    )
    result = Result(format_address(host, port), None, handler, connections)
    cpus = pinning.choose("off")

    def go(progress: "RoundProgress") -> None:
        progress.begin(0, result.target)
        result.rounds.append(measure(plan, cpus, None, progress.during, engine))
        progress.end(f"{result.rounds[0].throughput:,.0f} messages/s")

    return _carry_out(go, 1, duration, [result], cpus, json_file, [])


@command.command()
@click.option(
    "--backends",
    default="process,thread,pool,selector,coroutine,gevent,asyncio",
    show_default=True,
    metavar="NAMES",
    help="What to compare, separated by commas: names, or classes as path/to/file.py:Class.",
)
@click.option(
    "--peers",
    is_flag=True,
    help="In the same rounds, the stock Python servers of each model, and the model in C.",
)
@click.option(
    "-d",
    "--duration",
    type=Duration(),
    default="1.5s",
    show_default=True,
    metavar="DURATION",
    help="How long each round asks.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    metavar="N",
    help="How often each backend is measured.",
)
@click.option(
    "--handler",
    default="echo",
    show_default=True,
    metavar="NAME",
    help="What the servers answer: echo, upper, sleep, cpu, or a class as path/to/file.py:Class.",
)
@click.option(
    "--handler-option",
    "handler_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the handler; may be repeated.",
)
@click.option(
    "--server-option",
    "server_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of every backend's server, for example workers=2; may be repeated.",
)
@click.option(
    "--pin",
    type=click.Choice(["split", "off"]),
    default="split",
    show_default=True,
    help="split: server and client each have a core, where there are two; off: all share all.",
)
@_workload_options
def compare(
    *,
    backends: str,
    peers: bool,
    handler: str,
    handler_options: tuple[str, ...],
    server_options: tuple[str, ...],
    engine: str,
    rounds: int,
    pin: str,
    seed: int,
    timeout: float,
    duration: float,
    json_file: str | None,
    **workload: Any,
) -> int:
    """Compare concurrency models: a fresh server for every backend and round."""
    from clients.load import Workload
    from loadtest import pinning
    from loadtest.compare import Plan
    from loadtest.compare import compare as run_rounds
    from loadtest.targets import Workshop

    active = workload["active"]
    if active is not None and active > workload["connections"]:
        _usage(f"--active {active} is more than there are connections ({workload['connections']})")
    settings = _server_settings(server_options)
    settings |= {"handler": handler, "handler_option": handler_options}
    cpus = pinning.choose(pin)
    notes: list[str] = []
    results: list[Result] = []
    with Workshop() as folder:
        plan = Plan(
            targets=_targets(backends, settings, folder if peers else None, notes),
            rounds=rounds,
            workload=Workload(
                host="",
                port=0,
                duration=_positive(duration, "-d"),
                timeout=_positive(timeout, "--timeout"),
                handler=handler,
                **workload,
            ),
            pinning=cpus,
            seed=seed,
            engine=engine,
        )
        notes.append(_describe(plan, duration))
        return _carry_out(
            lambda progress: run_rounds(plan, results, progress),
            rounds * len(plan.targets),
            duration,
            results,
            cpus,
            json_file,
            notes,
        )


@command.command()
@click.option(
    "--backends",
    default="process,thread,selector,coroutine,gevent,asyncio",
    show_default=True,
    metavar="NAMES",
    help="What to look at, separated by commas: names, or classes as path/to/file.py:Class.",
)
@click.option(
    "-c",
    "--connections",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    metavar="N",
    help="Idle connections to open.",
)
@click.option(
    "--server-option",
    "server_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of every server, for example workers=2; may be repeated.",
)
@click.option("--json", "json_file", metavar="FILE", help="Save the result as JSON.")
def hold(
    *, backends: str, connections: int, server_options: tuple[str, ...], json_file: str | None
) -> int:
    """Count how many idle connections servers hold, and the memory of each."""
    from echoserver.errors import EchoServerError
    from loadtest import environment, report
    from loadtest.hold import Held
    from loadtest.hold import hold as open_and_look
    from loadtest.measure import LoadError

    settings = {"max_connections": str(connections + 16), **_server_settings(server_options)}
    if json_file is not None:
        _refuse_unwritable(json_file)
    found: list[Held] = []
    failure = ""
    targets = _targets(backends, {"handler": "echo", **settings}, None, [])
    try:
        for target in targets:
            print(f"{target.name}: opening {connections} connections", file=sys.stderr)
            found.append(open_and_look(target, connections))
    except (LoadError, EchoServerError, OSError) as error:
        failure = str(error)
    if found:
        report.show_held(found)
        if json_file is not None:
            report.save_held(json_file, environment.describe(([], [])), found)
    if failure:
        print(f"echoload: {failure}", file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    return EXIT_WRONG if any(not one.held for one in found) else 0


def _targets(
    backends: str, settings: dict[str, Any], peers: "Path | None", notes: list[str]
) -> "list[Target]":
    """Return what to compare; what cannot run here is noted instead.

    Args:
        backends: Names, separated by commas.
        settings: Of every backend's server.
        peers: Where to compile peers; None: no peers.
        notes: What the reader must know; added to.
    """
    from loadtest.peers import PEERS, peers_of
    from loadtest.targets import BackendTarget, PeerTarget

    names = list(dict.fromkeys(name.strip() for name in backends.split(",") if name.strip()))
    if not names:
        _usage("--backends names no backend")
    ours = [BackendTarget(name, _settings_of(name, settings)) for name in names]
    for setting in settings:
        if not any(setting in target.settings for target in ours):
            _usage(f"--server-option {setting}: none of --backends has a use for it")
    found: list[Target] = [*ours]
    if peers is None:
        return found
    if settings["handler"] != "echo":
        _usage("--peers echo, and do nothing else; leave out --handler")
    for peer in dict.fromkeys(peer for name in names for peer in peers_of(name)):
        if missing := PEERS[peer].missing:
            notes.append(f"{peer} is left out: {missing} is not installed.")
        else:
            found.append(PeerTarget(PEERS[peer], peers))
    return found


def _settings_of(backend: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return those settings that a backend has a use for; complain now, not in the first round."""
    from echoserver import Config, EchoServer, load_backend
    from echoserver.config import option_name
    from echoserver.config import settings as all_settings

    reads = load_backend(backend, "--backends").reads
    not_its_own = {
        setting.name
        for setting in all_settings()
        if setting.metadata.get("only_where_backend_reads") and setting.name not in reads
    }
    mine = {name: value for name, value in settings.items() if name not in not_its_own}
    own_place = {"handler", "handler_option"}
    sources = {
        name: option_name(name) if name in own_place else f"--server-option {name}" for name in mine
    }
    EchoServer(Config(backend=backend, **mine, sources={"backend": "--backends", **sources}))
    return mine


def _server_settings(words: tuple[str, ...]) -> dict[str, Any]:
    """Read ``--server-option NAME=VALUE``; the server checks the values."""
    from echoserver.config import did_you_mean, settings

    known = {setting.name for setting in settings() if not setting.metadata.get("hidden")}
    found: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not value:
            _usage(f"--server-option {word!r} is not NAME=VALUE, for example workers=2")
        if name not in known:
            _usage(f"--server-option: no setting is named {name!r}{did_you_mean(name, known)}")
        if name in {"backend", "handler", "handler_option"}:
            _usage(f"--server-option {word!r}: --{name.replace('_', '-')} has a place of its own")
        found[name] = value
    return found


def _carry_out(
    go: "Callable[[RoundProgress], None]",
    rounds: int,
    seconds: float | None,
    results: "list[Result]",
    cpus: "Pinning",
    json_file: str | None,
    notes: list[str],
) -> int:
    """Measure, show and save what there is (after Ctrl-C, too), and return the exit code."""
    from echoserver.errors import EchoServerError
    from loadtest import environment, report
    from loadtest.measure import LoadError
    from loadtest.progress import RoundProgress

    if json_file is not None:
        _refuse_unwritable(json_file)
    # Whoever ends us by SIGTERM wants what Ctrl-C does: the table so far, and nothing left behind.
    signal.signal(signal.SIGTERM, _interrupt)
    surroundings = environment.describe((sorted(cpus.server), sorted(cpus.client)))
    interrupted = False
    failure = ""
    try:
        with RoundProgress(rounds, seconds) as progress:
            go(progress)
    except KeyboardInterrupt:
        interrupted = True
    except (LoadError, EchoServerError, OSError) as error:
        failure = str(error)
    done = [result for result in results if result.rounds]
    if done:
        report.show(done, notes)
        if json_file is not None:
            try:
                report.save(json_file, surroundings, done)
            except OSError as error:
                failure = failure or f"--json: cannot write {json_file}: {error.strerror}"
    if interrupted:
        print("interrupted: only the rounds so far were counted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if failure:
        print(f"echoload: {failure}", file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    if any(result.wrong or not result.verified for result in done):
        return EXIT_WRONG
    return 0


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _describe(plan: "Plan", duration: float) -> str:
    workload = plan.workload
    where = (
        "server and client on a core each"
        if plan.pinning.split
        else "server and client share all cores"
    )
    count = f"{plan.rounds} interleaved rounds" if plan.rounds > 1 else "one round"
    some = f", {workload.active} of them active" if workload.active else ""
    anew = f", made anew every {workload.reconnect_every}" if workload.reconnect_every else ""
    return (
        f"{workload.connections} connections{some}{anew}, {workload.size}-byte messages, {count} "
        f"of {duration:g} s; {where}; client: {plan.engine}. "
        "RSS counts the pages that processes share once for each of them, PSS once in all."
    )


def _positive(value: float, option: str) -> float:
    if not value:
        _usage(f"{option} must be more than 0")
    return value


def _resolve(host: str, port: int) -> None:
    import socket

    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise click.ClickException(f"cannot resolve the host {host!r}: {reason}") from None


def _refuse_unwritable(path: str) -> None:
    """Complain about the file before the measurement, not after it."""
    import os
    from pathlib import Path

    target = Path(os.path.realpath(path))
    try:
        exists = target.exists()
    except OSError as error:
        _usage(f"--json: cannot write {path}: {error.strerror}")
    if exists and not target.is_file() and not target.is_dir():
        return  # a pipe or a device
    if target.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
        _usage(f"--json: cannot write {path}: its folder does not exist or cannot be written to")


def _usage(sentence: str) -> NoReturn:
    raise click.UsageError(sentence, click.get_current_context())
