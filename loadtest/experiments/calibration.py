"""The capacity of this machine's load client: measured once, saved, and used to judge runs.

The client is run against the fastest echo server that can be had here, and its throughput is
divided by the share of its core that it used. That is its capacity, whichever of the two was
slower: a run that comes close to it has measured the client.
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
from loadtest.machine.pinning import Pinning, affinity
from loadtest.peers import PEERS, Peer
from loadtest.results.statistics import median, paired_ratio
from loadtest.servers.targets import (
    BackendTarget,
    BuildDirectory,
    PeerTarget,
    RunningServer,
    Target,
    run_on,
)

_SECONDS = 1.0

IN_C = Peer("c-client", "cc")


@dataclass(slots=True)
class Rates:
    """The rates of each client, round by round."""

    rounds: int
    """How often each client is measured; the median counts."""
    server: str = ""
    """The name of the server that they are measured against."""
    by_client: dict[str, list[float]] = field(default_factory=dict)

    @property
    def complete_rounds(self) -> int:
        """The number of rounds that are complete."""
        return min(map(len, self.by_client.values()), default=0)

    def summary(self) -> dict[str, Calibration]:
        """Return the calibrations from the rounds so far, by engine."""
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
    count = min(len(one), len(two))
    return one[:count], two[:count]


def calibrate(pinning: Pinning, rates: Rates) -> None:
    """Measure the capacity of one process of each engine, and of a minimal client in C.

    The client in C verifies nothing, and takes part if it can be compiled. All clients take turns
    in the same rounds, each with a fresh server.

    Args:
        pinning: The CPUs of server and client.
        rates: The rates are added to it; an interruption leaves the rates so far in it.

    Raises:
        loadtest.errors.LoadError: A client or the server failed.
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
                with run_on(target, pinning.server) as server:
                    rate = _rate(client, server, pinning, folder)
                rates.by_client[client].append(rate)


def _rate(client: str, server: RunningServer, pinning: Pinning, folder: Path) -> float:
    """Return the rate of a client, divided by the share of its core that it used."""
    workload = Workload(server.host, server.port, duration=_SECONDS, warmup=_SECONDS / 4)
    if client == IN_C.name:
        words = [server.port, workload.connections, _SECONDS, workload.size]
        try:
            with affinity(pinning.client):
                output = subprocess.run(
                    [*IN_C.command(folder), *map(str, words)],
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=60,
                ).stdout.split()
        except (RuntimeError, subprocess.SubprocessError) as error:
            raise LoadError(f"the client in C failed: {error}") from None
        return int(output[0]) / float(output[1])
    round_ = measure(workload, pinning, server.pid, engine=Engine(client))
    if round_.ended_early:
        raise LoadError(f"the server that it was to be measured against {round_.ended_early}")
    cpu_share = min(1.0, round_.client_cpu_percent / 100) or 1.0
    return round_.throughput / cpu_share
