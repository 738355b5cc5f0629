"""A greenlet per client: cooperative threads on one event loop (gevent, on libev).

Each greenlet runs its flow from top to bottom, as a thread would; where a thread would block in
the kernel, it parks itself with the loop and another one runs. A switch costs well under a
microsecond and a connection about 10 KiB, so ten thousand of them are no trouble. But there is one
thread: a greenlet that computes stops every other one.

Nothing is monkey-patched: the program around this file keeps its blocking sockets.
"""

import gevent

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.conversation.connection import Connection
from echoserver.drivers.greenlets import Green
from echoserver.service import Service


class GeventBackend(Backend):
    """Spawns a greenlet for every client."""

    summary = "a greenlet per client, on one event loop (gevent)"
    cost = "a greenlet: about 10 KiB"

    def serve(self, listener: Listener, service: Service) -> None:  # noqa: ARG002 - the flow drains it
        """Accept in this greenlet, serve each client in one of its own."""
        Green().run(listener.flow(lambda connection: gevent.spawn(_serve, connection)))


def _serve(connection: Connection) -> None:
    green = Green()
    green.run(connection.driven_by(green))
