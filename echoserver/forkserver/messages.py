"""Messages between the server and its fork server, over a pair of SOCK_SEQPACKET sockets.

A message has a kind, usually the number of a child, and one more figure.
"""

import struct
from enum import IntEnum

MESSAGE = struct.Struct("BIi")  # kind, number, figure
MAX_MESSAGE_SIZE = 1 << 16  # bytes


class Kind(IntEnum):
    """The kinds of messages."""

    # From the server:
    PREPARE = 1
    """Serve by these settings from now on: a dictionary (`marshal`), in the file sent along."""
    SERVE = 2
    """Fork a child with this number for the socket sent along (SCM_RIGHTS, unix(7))."""
    SIGNAL = 3
    """Send the child with this number the signal that the figure names."""
    PING = 9
    """Answer with PONG."""

    # From the fork server:
    READY = 4
    """The fork server is prepared."""
    UNUSABLE = 5
    """The fork server could not load the handler. The text that follows says why."""
    ENDED = 6
    """The child with this number has ended."""
    REFUSED = 7
    """The child with this number could not be forked: the figure is errno."""
    FAILED = 8
    """The fork server fails; this is its last message. The text that follows says why."""
    PONG = 10
    """The fork server is alive."""
