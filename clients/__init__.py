"""Programs that talk to an echo server.

`EchoClient` is the blocking library client; `ThreadLoad` the load client of 400 real threads,
`EpollLoad` the one of a single thread; the command `echoclient` the interactive one.
"""

from clients.client import EchoClient, ShortReplyError
from clients.epoll import EpollLoad
from clients.load import Load, LoadResult, Workload
from clients.threads import ThreadLoad

__all__ = [
    "EchoClient",
    "EpollLoad",
    "Load",
    "LoadResult",
    "ShortReplyError",
    "ThreadLoad",
    "Workload",
]
