"""What this machine's load client can reach: measured once, kept, and used to judge runs.

The client is run against the fastest echo server that can be had here, and its throughput is
divided by the share of its core that it used. That is its capacity, whichever of the two was
slower: a run that comes near to it has measured the client.
"""

import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from clients.workload import Workload
from loadtest.errors import LoadError
from loadtest.load.capacity import Calibration
from loadtest.load.round import Engine, measure
from loadtest.load.worker import ENGINES
from loadtest.machine.pinning import Pinning, pinned
from loadtest.peers import PEERS, Peer
from loadtest.results.statistics import median, paired_ratio
from loadtest.servers.targets import (
    BackendTarget,
    BuildDirectory,
    PeerTarget,
    Running,
    Target,
    started_on,
)

_SECONDS = 1.0

IN_C = Peer("c-client", "cc")


@dataclass(slots=True)
class Rates:
    """What each client reached, round by round."""

    rounds: int
    """How often each is measured; its median counts."""
    server: str = ""
    """Against which server."""
    by_client: dict[str, list[float]] = field(default_factory=dict)

    @property
    def whole(self) -> int:
        """How many rounds came to their end."""
        return min(map(len, self.by_client.values()), default=0)

    def summary(self) -> dict[str, Calibration]:
        """Return what came of the rounds so far, by engine."""
        limit = self.by_client.get(IN_C.name)
        return {
            engine: Calibration(
                median(values),
                self.server,
                paired_ratio(*_pairs(values, limit)).median if limit else None,
            )
            for engine, values in self.by_client.items()
            if engine != IN_C.name and values
        }


def _pairs(one: list[float], two: list[float]) -> tuple[list[float], list[float]]:
    both = min(len(one), len(two))
    return one[:both], two[:both]


def calibrate(pinning: Pinning, rates: Rates) -> None:
    """Measure what one process of each engine can do here, and the plainest client in C.

    The client in C verifies nothing, and is there where it can be compiled; it takes its turn in
    the same rounds, each with a fresh server.

    Args:
        pinning: The CPUs of server and client.
        rates: Added to; being interrupted leaves in it what was measured until then.

    Raises:
        loadtest.errors.LoadError: It cannot be measured.
    """
    with BuildDirectory() as folder:
        target: Target = BackendTarget("selector")
        clients = list(ENGINES)
        if not PEERS["c-epoll"].missing and folder.is_dir():
            target = PeerTarget(PEERS["c-epoll"], folder)
            clients.append(IN_C.name)
        rates.server = target.name
        rates.by_client = {client: [] for client in clients}
        for number in range(rates.rounds):
            for client in random.Random(number).sample(clients, len(clients)):
                with started_on(target, pinning.server) as running:
                    rate = _rate(client, running, pinning, folder)
                rates.by_client[client].append(rate)


def _rate(client: str, running: Running, pinning: Pinning, folder: Path) -> float:
    """Return what a client reaches, divided by the share of its core that it used."""
    workload = Workload(running.host, running.port, duration=_SECONDS, warmup=_SECONDS / 4)
    if client == IN_C.name:
        words = [running.port, workload.connections, _SECONDS, workload.size]
        try:
            with pinned(pinning.client):
                said = subprocess.run(
                    [*IN_C.command(folder), *map(str, words)],
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=60,
                ).stdout.split()
        except (RuntimeError, subprocess.SubprocessError) as error:
            raise LoadError(f"the client in C failed: {error}") from None
        return int(said[0]) / float(said[1])
    found = measure(workload, pinning, running.pid, engine=Engine(client))
    if found.ended_early:
        raise LoadError(f"the server that it was to be measured against {found.ended_early}")
    share = min(1.0, found.client_cpu_percent / 100) or 1.0
    return found.throughput / share
