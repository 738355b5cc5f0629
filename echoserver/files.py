"""Files by names that a person types: what is really behind such a name, and how much of it."""

import os


def own_descriptor(path: str) -> int | None:
    """Return the descriptor of this process that `path` names, such as 2 for ``/dev/stderr``.

    To open such a name makes an open file with an offset of its own, so what is written there lies
    on what others write who share the descriptor (open(2)); and a socket cannot be opened at all.

    Args:
        path: A name, or a symbolic link to one: ``/dev/stdout``, ``/proc/self/fd/5``.

    Returns:
        The number; None: it names something else.
    """
    own = os.path.realpath("/proc/self/fd")
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(path)
        if name.isdecimal() and os.path.realpath(folder) == own:
            return int(name)
        try:
            path = os.path.join(folder, os.readlink(path))  # noqa: PTH118, PTH115 - text
        except OSError:  # not a link
            return None
    return None


_MOST_LINKS = 40  # as the kernel follows (path_resolution(7))
