"""How many files this process may open, and so how many connections it may have."""

import resource

from loadtest.errors import ClientError

RESERVED_DESCRIPTORS = 32
"""Descriptors that a process needs besides its connections, with some to spare."""


def allow_descriptors(connections: int, option: str = "-c") -> None:
    """Raise the soft limit of open files as far as `connections` need it.

    Args:
        connections: How many there are to be.
        option: The option that asks for so many.

    Raises:
        ClientError: The hard limit does not allow it.
    """
    needed = connections + RESERVED_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed and hard != resource.RLIM_INFINITY and hard < needed:
        raise ClientError(
            f"{connections} connections need {needed} file descriptors, and this process may have "
            f"{hard}: raise the hard limit (ulimit -Hn {needed}) or ask for fewer with {option}"
        )
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
