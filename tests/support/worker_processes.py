"""The workers of a server, and who serves whom."""

from typing import Any

import echoserver
from tests.support import inspection


def worker_pids(server: echoserver.SpawnedServer) -> list[int]:
    return inspection.servers(server.pid)


def servers_of(socks: list[Any], server: echoserver.SpawnedServer) -> dict[Any, int]:
    """Return the worker that serves each connection: it, or its child, has the other end of it."""
    serves = {port: pid for pid in worker_pids(server) for port in inspection.peers_of(pid)}
    return {sock: serves[sock.getsockname()[1]] for sock in socks}
