"""Programs that talk to an echo server.

`EchoClient` is the blocking library client; `ThreadLoad` the load client of 400 real threads,
`EpollLoad` the one of a single thread; the command `echoclient` the interactive one.
"""

import importlib
from typing import TYPE_CHECKING, Any

from clients.client import EchoClient, ShortReplyError

if TYPE_CHECKING:
    from clients.epoll import EpollLoad
    from clients.load import Load
    from clients.load_result import LoadResult
    from clients.threads import ThreadLoad
    from clients.workload import Workload

__all__ = [
    "EchoClient",
    "EpollLoad",
    "Load",
    "LoadResult",
    "ShortReplyError",
    "ThreadLoad",
    "Workload",
]

# A program that only wants a client does not wait for histograms.
_ON_USE = {
    "EpollLoad": "clients.epoll",
    "Load": "clients.load",
    "LoadResult": "clients.load_result",
    "ThreadLoad": "clients.threads",
    "Workload": "clients.workload",
}


def __getattr__(name: str) -> Any:
    if name in _ON_USE:
        return getattr(importlib.import_module(_ON_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
