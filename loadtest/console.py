"""Rich's console, with the colours that `echoserver.terminal` decides on."""

import errno
import os
import sys
from typing import IO

from rich.console import Console

from echoserver.terminal import has_colours, is_terminal

_UNLIMITED_WIDTH = 1000  # characters: in a file or a pipe, a table takes what it needs


class Screen(Console):
    """A rich console on standard output or standard error, whose reader may close it.

    Args:
        stream: Where to write; None: standard output.
        width: Characters per line where the stream is not a terminal.
    """

    def __init__(self, stream: IO[str] | None = None, width: int = _UNLIMITED_WIDTH) -> None:
        stream = stream or sys.stdout
        super().__init__(
            file=stream,
            width=None if is_terminal(stream) else width,
            # Rich would decide on colours by itself, and not as the other commands do.
            color_system="standard" if has_colours(stream) else None,
            no_color=False,
        )

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`; rich's own method would end the program."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
