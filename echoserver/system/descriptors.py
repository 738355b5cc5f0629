"""How many files a process may have open (getrlimit(2), RLIMIT_NOFILE), and who gets them."""

import resource
from contextlib import suppress

# Descriptors that are not connections': stderr, listeners, the wake-up pipe, a loop's own. Where
# there are few, half of them.
_RESERVED_DESCRIPTORS = 64


def room_for_connections(descriptors: int) -> int:
    """Return how many of so many descriptors connections may have."""
    return descriptors - min(_RESERVED_DESCRIPTORS, descriptors // 2)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; return what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
