"""What this machine, and not the server, runs out of when connections are made."""

import errno

OWN_LIMITS = {
    errno.EADDRNOTAVAIL: "no local port is free: net.ipv4.ip_local_port_range has few, or many are "
    "in TIME_WAIT for a minute",
    errno.EMFILE: "this process may not open more files (ulimit -n)",
    errno.ENFILE: "this machine may not open more files (fs.file-max)",
    errno.ENOBUFS: "the kernel has no memory for more sockets",
    errno.ENOMEM: "the kernel has no memory for more sockets",
}
"""By the error of socket(2) or connect(2): what is missing, as a part of a sentence."""


def own_limit(kind: str) -> str:
    """Return what is missing for a kind of error as reports name it; empty: it is the server's."""
    number = getattr(errno, kind.upper(), 0)
    return OWN_LIMITS.get(number, "")
