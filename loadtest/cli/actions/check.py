"""What `echoload check` does: grade a server, or show the checks."""

import textwrap
import time
from collections import Counter
from typing import Any

import click

from clients.address import SocketAddress, is_unix, parse_address, resolve_reachable
from loadtest.check.catalogue import choose, every
from loadtest.check.expectation import EXPECTATIONS
from loadtest.check.grading import EXIT_NOT_GRADED, Grading
from loadtest.check.model import Check
from loadtest.check.submission.server import CannotGrade, Limits
from loadtest.check.submission.submission import Submission
from loadtest.check.trial import Session
from loadtest.check.weights import read
from loadtest.cli.types import positive
from loadtest.errors import usage
from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
from loadtest.output import complain, is_standard_output, refuse_unwritable
from loadtest.servers.commands import HOST
from loadtest.servers.specs import describe_target


def check(*, order: list[tuple[str, str]], words: tuple[str, ...], **options: Any) -> int:
    """Grade, or show what the checks are; return the exit code."""
    if options["list_"]:
        _show_all(every())
        return 0
    if options["explain"] is not None:
        return _explain(options["explain"], every())
    files, shown = _destinations(order)
    session = _session(words, options)
    try:
        chosen = choose(options["only"], options["skip"])
        weights = _weights(options["weights"], [*files.values(), shown])
    except ValueError as error:
        usage(str(error))
    grading = Grading(files, shown)
    treat_all_as_ctrl_c()
    try:
        grading.carry_out(session, chosen, weights, options)
    except KeyboardInterrupt:
        grading.finish()
        complain("interrupted: only the checks so far were carried out")
        return EXIT_INTERRUPTED
    except CannotGrade as problem:
        complain(f"echoload: cannot grade: {problem}")
        return EXIT_NOT_GRADED
    return grading.exit_code


def _session(words: tuple[str, ...], options: dict[str, Any]) -> Session:
    """Return what is to be graded, and how, or complain."""
    if not words:
        usage("what is to be graded? HOST:PORT, or -- and the command that starts a server")
    limits = Limits(options["memory"], options["nofile"], options["nproc"], options["user"])
    submission = None
    address: SocketAddress = HOST, 0
    if not words[0]:
        usage("the command to start is empty")
    is_address = describe_target(words[0]).is_address
    if is_address and len(words) > 1:
        usage(
            f"{words[0]} is an address, and {words[1]!r} follows it; give an address, or a "
            "command, with --port N where it listens on a port of its own"
        )
    if is_address:
        try:
            host, port = parse_address(words[0])
            if is_unix(host):
                usage(f"{host} is a UNIX socket; what check looks at is TCP: give HOST:PORT")
            address = resolve_reachable(host, port)
        except ValueError as error:
            usage(str(error))
        except OSError as error:
            usage(f"cannot resolve the host {host!r}: {error.strerror}")
        if limits != Limits() or options["build"] is not None or options["port"] is not None:
            usage(
                "--port, --build, --memory, --nofile, --nproc and --user are for a server started "
                "here"
            )
    else:
        submission = Submission(words, limits, options["port"])
        try:
            limits.check()
        except ValueError as error:
            usage(str(error))
    return Session(
        submission,
        address,
        EXPECTATIONS[options["expect"]],
        options["seed"],
        options["clients"],
        options["concurrency"],
        positive(options["timeout"], "--timeout"),
        time.monotonic() + positive(options["total_timeout"], "--total-timeout"),
    )


def _destinations(order: list[tuple[str, str]]) -> tuple[dict[str, str], str]:
    """Return the formats by file, and the one for the terminal.

    A file belongs to the format before it; one with none before it, to the next that has no file.
    """
    files: dict[str, str] = {}
    formats: list[str] = []
    early: list[str] = []
    shown: list[str] = []

    def to(path: str, form: str) -> None:
        if path in files:
            usage(f"--output {path} was given twice; each format needs a file of its own")
        refuse_unwritable(path, "--output")
        if is_standard_output(path):
            shown.append(form)
        else:
            files[path] = form

    for option, value in order:
        if option == "--format" and early:
            to(early.pop(0), value)
        elif option == "--format":
            formats.append(value)
        elif formats:
            to(value, formats.pop())
        else:
            early.append(value)
    for path in early:
        to(path, "text")
    shown += formats
    if len(shown) > 1:
        usage(f"only one of --format {' and '.join(shown)} can go to the terminal; give --output")
    return files, shown[0] if shown else "text"


def _weights(path: str | None, formats: list[str]) -> dict[str, float]:
    found = read(path) if path is not None else {}
    if "classroom50" in formats and (odd := [k for k, v in found.items() if v != int(v)]):
        raise ValueError(f"--weights: Classroom 50 takes whole numbers only; see {', '.join(odd)}")
    return found


def _show_all(checks: list[Check]) -> None:
    counts: Counter[str] = Counter()
    for one in checks:
        if not counts[one.group]:
            click.echo(f"{one.group}:")
        counts[one.group] += 1
        bonus = " (bonus)" if one.bonus else ""
        click.echo(f"  {one.id}  {one.weight:3g} points{bonus:8}  {one.title}")
    click.echo("Explain one: echoload check --explain C1")


def _explain(name: str, checks: list[Check]) -> int:
    found = next((one for one in checks if one.id == name.upper()), None)
    if found is None:
        usage(f"--explain: there is no check {name}; see --list")
    needs = f"needs {', '.join(found.needs)} to pass" if found.needs else "comes first"
    where = "; only where the server is started here" if found.process else ""
    bonus = ", as a bonus" if found.bonus else ""
    click.echo(f"{found.id} {found.title}")
    click.echo(f"{found.group}; {found.weight:g} points{bonus}; {needs}{where}\n")
    for label, said in (
        ("Why", found.purpose),
        ("What is done", found.wire),
        ("Passed when", found.passes),
        ("Where to look", found.hint),
    ):
        click.echo(f"{label}:")
        click.echo(textwrap.indent(textwrap.fill(said, 92), "  "))
    return 0
