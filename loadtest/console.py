"""Rich's console, with the colours that `echoserver.terminal` decides on."""

from typing import IO

from rich.console import Console

from echoserver.terminal import has_colours, is_terminal


def console(stream: IO[str], width_elsewhere: int) -> Console:
    """Return a console on `stream`, as wide as its terminal, or as `width_elsewhere`."""
    return Console(
        file=stream,
        width=None if is_terminal(stream) else width_elsewhere,
        # Rich would decide on colours by itself, and not as the other commands do.
        color_system="standard" if has_colours(stream) else None,
        no_color=False,
    )
