"""Rich's console, with the colours that `echoserver.terminal` decides on."""

import errno
import os
import sys
from typing import IO

from rich.console import Console

from echoserver.terminal import has_colours, is_terminal

_NO_BOUND = 1000  # a file or a pipe has no width; the table takes what it needs


class Screen(Console):
    """Standard output, or standard error; what reads it may close it, which is for us to notice.

    Args:
        stream: Which; None: standard output.
        width: Characters a line where it is not a terminal.
    """

    def __init__(self, stream: IO[str] | None = None, width: int = _NO_BOUND) -> None:
        stream = stream or sys.stdout
        super().__init__(
            file=stream,
            width=None if is_terminal(stream) else width,
            # Rich would decide on colours by itself, and not as the other commands do.
            color_system="standard" if has_colours(stream) else None,
            no_color=False,
        )

    def on_broken_pipe(self) -> None:
        """Raise the error, where rich would end the program."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
