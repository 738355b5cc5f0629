"""The workers of a server, and who serves whom."""

import os
import select
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
import psutil
import pytest
import echoserver
from echoserver.service.slots import SharedSlots, SlotTable
from echoserver.system.shared_lock import SharedLock
from loadtest.machine.sockets import accept_queue
from tests.echoserver.test_cli import sentence
from tests.support import inspection, pace, wire
from tests.support.inspection import events
from tests.support.launching import changed_server, command, free_port, run

def worker_pids(server: echoserver.SpawnedServer) -> list[int]:
    return inspection.servers(server.pid)

def servers_of(socks: list[Any], server: echoserver.SpawnedServer) -> dict[Any, int]:
    """Return the worker that serves each connection: it, or its child, has the other end of it."""
    serves = {port: pid for pid in worker_pids(server) for port in inspection.peers_of(pid)}
    return {sock: serves[sock.getsockname()[1]] for sock in socks}
