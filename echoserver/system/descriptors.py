"""The limit of open files (getrlimit(2), RLIMIT_NOFILE), and the share that connections get."""

import resource
from contextlib import suppress

# Descriptors for everything but connections: stderr, listeners, the wake-up pipe, an event loop's
# own. Where the limit is low, half of it is reserved.
_RESERVED_DESCRIPTORS = 64


def room_for_connections(descriptors: int) -> int:
    """Return how many of `descriptors` connections may use."""
    return descriptors - min(_RESERVED_DESCRIPTORS, descriptors // 2)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; return the limit now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
