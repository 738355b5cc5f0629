"""One client at a time (UNP 30.4: TCP iterative server): the baseline.

The only thread accepts a client, serves it to its end, and accepts the next. Nothing is shared,
nothing is switched, nothing is started: no model does less per message. All other clients wait in
the kernel's queue, for as long as the client that is served stays.

A connection costs no memory beyond its socket; what it costs is the time of all other clients.
"""

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.config import Config
from echoserver.service import Service


class IterativeBackend(Backend):
    """Serves each client to its end before it accepts the next."""

    summary = "one client at a time: the baseline"
    cost = "nothing; all others wait"

    @classmethod
    def concurrency(cls, config: Config) -> int:  # noqa: ARG003 - whatever is configured
        """Return 1: each client is served to its end."""
        return 1

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept and serve in this thread."""
        for connection in listener:
            connection.serve()
        service.drain()
