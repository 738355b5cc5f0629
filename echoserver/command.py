"""How the three commands speak at the prompt: one sentence, the right exit code, no traceback."""

import atexit
import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from echoserver.errors import EchoServerError
from echoserver.lifecycle.state import remaining_threads
from echoserver.units import parse_duration

EXIT_USAGE = 2


class Duration(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """Seconds as a number, or with a unit: 500ms, 5s, 2m."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the duration in seconds."""
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)


def run(command: click.Command) -> NoReturn:
    """Run `command` on the arguments of this process, and exit.

    Usage errors exit 2; an `EchoServerError` with its own code; Ctrl-C 130, silently. Otherwise, an
    integer that the command returns is the exit code.
    """
    _occupy_standard_descriptors()
    _replace_unencodable_characters()
    name = command.name or "echoserver"
    if f"_{name.upper()}_COMPLETE" in os.environ:
        command.main(prog_name=name)  # a shell asks for completions
    code: Any
    try:
        try:
            # Not by `command.main`, which exits 1 when a reader closes the pipe early.
            with command.make_context(name, sys.argv[1:]) as context:
                code = command.invoke(context)
        except click.exceptions.Exit as exit_request:
            code = exit_request.exit_code
        sys.stdout.flush()  # a failure to write must surface here, where it can be reported
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        _fail(name, f"{error.format_message().rstrip('.')}{hint}", EXIT_USAGE)
    except click.ClickException as error:
        _fail(name, error.format_message(), error.exit_code)
    except EchoServerError as error:
        _fail(name, str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `echoload ... | head`: the reader has closed the pipe
        _exit(128 + signal.SIGPIPE)
    except OSError as error:
        _fail(name, f"cannot go on: {error.strerror or error}", 1)
    _exit(code if isinstance(code, int) else 0)


def _fail(name: str, sentence: str, code: int) -> NoReturn:
    with suppress(OSError, ValueError):  # standard error may be closed
        print(f"{name}: {' '.join(sentence.split())}", file=sys.stderr)
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Exit without a traceback, even if output cannot be written or Ctrl-C is pressed again."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if remaining_threads():  # threads of a plugin, for which the interpreter would wait
        atexit._run_exitfuncs()  # noqa: SLF001 - there is no other way to call them before os._exit
        os._exit(code)
    sys.exit(code)


def _replace_unencodable_characters() -> None:
    """Make standard output write a question mark for a character that its encoding lacks.

    Otherwise printing such a character to a terminal that is not UTF-8 would raise an exception.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return
    encodes_everything = (stream.encoding.lower(), stream.errors) == ("utf-8", "surrogateescape")
    if stream.errors in {"strict", "surrogateescape"} and not encodes_everything:
        stream.reconfigure(errors="replace")


def _occupy_standard_descriptors() -> None:
    """Open /dev/null for closed standard descriptors.

    Otherwise a socket could become descriptor 2, and be sent log lines.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r"))
