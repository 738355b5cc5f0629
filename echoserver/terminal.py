"""What a terminal can show: the one decision, for all three commands, on colours and on motion.

NO_COLOR, when set and not empty, means none (no-color.org); else FORCE_COLOR or CLICOLOR_FORCE,
neither empty nor 0, means colours even in a file; else what is not a terminal gets none, nor one
that cannot show any (TERM=dumb), nor any with CLICOLOR=0 (bixense.com/clicolors).
"""

import os
from collections.abc import Mapping
from typing import IO

_INCAPABLE = {"dumb", "unknown"}


def is_terminal(stream: IO[str] | None) -> bool:
    """Tell whether a standard stream, which may be closed or missing, is a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def printable(text: str, keep: str = "") -> str:
    """Return a text in which the characters that would command a terminal are escaped.

    Args:
        text: It may come from a peer, or from another process.
        keep: Characters that are left as they are, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def has_motion(stream: IO[str] | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether output on a stream can be overwritten, as a progress bar does."""
    return is_terminal(stream) and environment.get("TERM") not in _INCAPABLE


def has_colours(stream: IO[str] | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether to write colours, or bold letters, to a stream."""
    if environment.get("NO_COLOR"):
        return False
    if any(
        environment.get(name, "0") not in {"", "0"} for name in ("FORCE_COLOR", "CLICOLOR_FORCE")
    ):
        return True
    return has_motion(stream, environment) and environment.get("CLICOLOR") != "0"
