"""A process per client (UNP 30.5: concurrent, one child per client): fork after accept.

This process accepts; a child serves that one client, and exits. Nothing is shared, so nothing
needs a lock, a crash affects one client only, and Python computes on every core.

In one process it would read::

    for connection in listener:
        if os.fork() == 0:  # the child: serves, and never comes back
            connection.serve()
            os._exit(0)
        connection.sock.close()  # the parent's copy, or the client would never see an end

A connection costs a fork, and the pages that the child writes to. Both grow with what the
forking process has in memory. So this process, with its command line, configuration and log, does
not fork itself, but starts a small process that does. The fork, the child's life and its end are
in `echoserver.forkserver.program`. A forking process that also accepts was tried: the modules that
accepting needs cost each child twice the memory (docs/performance.md).
"""

from contextlib import closing

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.forkserver.client import ForkServer
from echoserver.service import Service


class ProcessBackend(Backend):
    """Forks a process for every client."""

    summary = "a process per client (fork)"
    cost = "a fork, and about 490 KiB"

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept in this process, serve each client in a child of the fork server's."""
        with closing(ForkServer(service)) as fork_server:
            for connection in listener:
                fork_server.serve(connection)
            service.drain()
