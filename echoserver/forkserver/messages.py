"""What the server and its fork server say to each other, over a pair of SOCK_SEQPACKET sockets.

A message has a kind, and mostly the number of a child, and one figure more.
"""

import struct
from enum import IntEnum

MESSAGE = struct.Struct("BIi")  # kind, number, figure
LONGEST = 1 << 16


class Kind(IntEnum):
    """What a message is about."""

    # From the server:
    PREPARE = 1
    """Serve in this way from now on: a dictionary (`marshal`), in a file that comes along."""
    SERVE = 2
    """Fork a child of this number for the socket that comes along (SCM_RIGHTS, unix(7))."""
    SIGNAL = 3
    """Send that child a signal: the figure."""
    PING = 9
    """Say that you live."""

    # From the fork server:
    READY = 4
    """It is prepared."""
    UNUSABLE = 5
    """It could not load the handler. What follows says why."""
    ENDED = 6
    """That child has ended."""
    REFUSED = 7
    """It could not be forked: the figure is errno."""
    FAILED = 8
    """Its last word. What follows says what went wrong."""
    PONG = 10
    """It lives."""
