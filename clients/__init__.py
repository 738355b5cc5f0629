"""Programs that talk to an echo server.

`EchoClient` is the blocking library client; `ThreadLoad` the load client of 400 real threads;
the command `echoclient` the interactive one.
"""

from clients.client import EchoClient, ShortReplyError
from clients.threads import LoadResult, ThreadLoad, Workload

__all__ = ["EchoClient", "LoadResult", "ShortReplyError", "ThreadLoad", "Workload"]
