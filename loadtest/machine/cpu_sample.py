"""How much the CPUs of client and server are used, by all processes."""

import time
from typing import Self

from loadtest.machine.pinning import Pinning
from loadtest.machine.usage import busy_seconds


class CpuSample:
    """The CPU time that all processes have used on the CPUs of client and server."""

    def __init__(self, pinning: Pinning) -> None:
        self._pinning = pinning
        self.at = time.monotonic()
        self.client = busy_seconds(pinning.client)
        self.programs = busy_seconds(pinning.client | pinning.server, interrupts=False)
        self.ours = time.process_time()

    def since(self, before: "CpuSample") -> Self:
        """Subtract an earlier sample, and return this one."""
        self.at -= before.at
        self.client -= before.client
        self.programs -= before.programs
        self.ours -= before.ours
        return self

    @property
    def client_share(self) -> float:
        """How much of the time the client's CPUs were not idle."""
        return self.client / (self.at * len(self._pinning.client))

    def others_share(self, client_share: float, server_seconds: float) -> float:
        """Return the share of the CPUs' time that other programs used."""
        others = self.programs - self.ours - server_seconds - client_share * self.at
        cpus = len(self._pinning.client | self._pinning.server)
        return max(0.0, others / (self.at * cpus))
