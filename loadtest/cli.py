"""The command `echoload`."""

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from echoserver import __version__
from echoserver.command import Duration

if TYPE_CHECKING:
    from loadtest.pinning import Pinning
    from loadtest.progress import RoundProgress
    from loadtest.report import Result

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
            help="Connections, each with a thread of its own.",
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
    type=click.Choice(["echo", "upper"]),
    default="echo",
    show_default=True,
    help="What the server answers.",
)
@_workload_options
def run(
    *,
    address: str,
    connections: int,
    duration: float | None,
    messages: int | None,
    json_file: str | None,
    **workload: Any,
) -> int:
    """Put one running server under load."""
    from clients.address import format_address, parse_address
    from clients.threads import Workload
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
    plan = Workload(
        host=host,
        port=port,
        connections=connections,
        duration=duration,
        messages=messages,
        answer=handler,
        timeout=_positive(workload.pop("timeout"), "--timeout"),
        **workload,
    )
    result = Result(format_address(host, port), None, handler, connections)
    cpus = pinning.choose("off")

    def go(progress: "RoundProgress") -> None:
        progress.begin(0, result.target)
        result.rounds.append(measure(plan, cpus, progress=progress.during))
        progress.end(f"{result.rounds[0].throughput:,.0f} messages/s")

    return _carry_out(go, 1, duration, [result], cpus, json_file, [])


@command.command()
@click.option(
    "--backends",
    default="process,thread,pool,gevent",
    show_default=True,
    metavar="NAMES",
    help="What to compare, separated by commas: names, or classes as path/to/file.py:Class.",
)
@click.option(
    "-d",
    "--duration",
    type=Duration(),
    default="2s",
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
    type=click.Choice(["echo", "upper"]),
    default="echo",
    show_default=True,
    help="What the servers answer.",
)
@click.option(
    "--pin",
    type=click.Choice(["split", "off"]),
    default="split",
    show_default=True,
    help="split: server and client each have a core, where there are two.",
)
@_workload_options
def compare(
    *,
    backends: str,
    handler: str,
    rounds: int,
    pin: str,
    seed: int,
    timeout: float,
    duration: float,
    json_file: str | None,
    **workload: Any,
) -> int:
    """Compare concurrency models: a fresh server for every backend and round."""
    import echoserver
    from clients.threads import Workload
    from loadtest import pinning
    from loadtest.compare import Plan
    from loadtest.compare import compare as run_rounds

    names = list(dict.fromkeys(name.strip() for name in backends.split(",") if name.strip()))
    if not names:
        _usage("--backends names no backend")
    for name in names:
        echoserver.load_backend(name, "--backends")
    cpus = pinning.choose(pin)
    plan = Plan(
        backends=names,
        handler=handler,
        rounds=rounds,
        workload=Workload(
            host="",
            port=0,
            duration=_positive(duration, "-d"),
            timeout=_positive(timeout, "--timeout"),
            answer=handler,
            **workload,
        ),
        pinning=cpus,
        seed=seed,
    )
    notes = [_describe(plan.workload.connections, plan.workload.size, duration, rounds, cpus)]
    results: list[Result] = []
    return _carry_out(
        lambda progress: run_rounds(plan, results, progress),
        rounds * len(names),
        duration,
        results,
        cpus,
        json_file,
        notes,
    )


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


def _describe(connections: int, size: int, duration: float, rounds: int, cpus: "Pinning") -> str:
    where = (
        "server and client on a core each" if cpus.split else "server and client share all cores"
    )
    count = f"{rounds} interleaved rounds" if rounds > 1 else "one round"
    return (
        f"{connections} connections, {size}-byte messages, {count} of {duration:g} s; {where}. "
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
