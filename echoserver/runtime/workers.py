"""The workers of one master: started, told, and settled with when they have ended."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.lifecycle.state import DRAIN_SIGNAL
from echoserver.monitoring.counters import Totals
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.runtime.design import ServerPlan
from echoserver.runtime.sidecars import Sidecars
from echoserver.runtime.worker import SIGNALS, Duty, Worker, serve_as_worker
from echoserver.service.quota import AddressTable, SharedQuota
from echoserver.service.resources import Resources
from echoserver.service.slots import SharedSlots, SlotTable
from echoserver.system.processes import ParentDeathSignal

HEARTBEAT_TIMEOUT = 20.0
"""Seconds after which a worker that has not answered is replaced."""


class Workers:
    """Those that live, and what they share: slots, addresses, and the scoreboard.

    Iterating over them is safe while some are added or removed.
    """

    def __init__(
        self,
        design: ServerPlan,
        sockets: ListeningSockets,
        lifecycle: Lifecycle,
        log: Log,
        scoreboard: Scoreboard,
        sidecars: Sidecars,
    ) -> None:
        self._sockets, self._lifecycle, self._log = sockets, lifecycle, log
        self._sidecars = sidecars
        self.scoreboard = scoreboard
        self.count = scoreboard.numbers
        """How many are to serve."""
        self.totals = Totals()
        """What those did that have ended."""
        self._bond = ParentDeathSignal()
        self._slot_table = SlotTable(scoreboard.places, design.total_limit(self.count))
        self._address_table = AddressTable(scoreboard.places, design.configured_limit())
        self._living: list[Worker] = []

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._living))

    def __len__(self) -> int:
        return len(self._living)

    @property
    def any_serves(self) -> bool:
        """There is one that serves."""
        return any(worker.ready for worker in self._living)

    def has(self, number: int) -> bool:
        """Tell whether one of that number lives."""
        return any(worker.number == number for worker in self._living)

    def set_limit(self, design: ServerPlan) -> None:
        """Let them have as many connections open together as a design allows."""
        self._slot_table.set_limit(design.total_limit(self.count))

    # -- their lives ---------------------------------------------------------------------------

    def start(self, number: int, design: ServerPlan, replaces: Worker | None = None) -> bool:
        """Fork a worker.

        Returns:
            Whether there is one now: the system may have no process left.
        """
        place = self.scoreboard.reserve(number)
        duty = Duty(number, place, design, self._sockets, self._resources, self._leave_master)
        now = time.monotonic()  # before its first beat
        # A signal must find either the master's handlers or the worker's, and not the moment
        # between them.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                serve_as_worker(duty, self.scoreboard, self._bond, self._log)
        except OSError as error:
            self.scoreboard.retire_slot(place, number)
            self._log.warning_each_second("worker_not_started", worker=number, error=str(error))
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        worker = Worker(number, pid, place, design, started=now, asked=now, replaces=replaces)
        self._living.append(worker)
        self._log.info("worker_started", worker=number, worker_pid=pid)
        return True

    def _leave_master(self) -> None:
        self._lifecycle.become_worker()
        self._sidecars.become_worker()

    def _resources(self, place: int, design: ServerPlan) -> Resources:
        return Resources(
            SharedSlots(design.process_limit(), self._slot_table, place),
            SharedQuota(self._address_table, place),
            self._sidecars.access_log,
            partial(self.scoreboard.write, place),
            promptly=True,
        )

    def reap(self) -> Iterator[tuple[Worker, int]]:
        """Collect those that have ended; yield each with its exit code."""
        for worker in self:
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._living.remove(worker)
                self._settle(worker)
                yield worker, os.waitstatus_to_exitcode(status)

    def _settle(self, worker: Worker) -> None:
        """Take over what an ended worker has told, and give back the slots that it still held."""
        # Their accounts first: a place that is free may be the next worker's at once.
        self._slot_table.wipe(worker.place)
        self._address_table.wipe(worker.place)
        account = self.scoreboard.retire_slot(worker.place, worker.number)
        self.totals.add(account.totals)
        self._log.count_dropped(account.vitals.log_lines_dropped)

    def kill_all(self) -> None:
        """Kill and collect those that are left."""
        self.tell_all(signal.SIGKILL)
        for worker in self:
            os.waitpid(worker.pid, 0)
            self._settle(worker)
        self._living.clear()

    def close(self) -> None:
        """Kill those that are left, and close what they shared."""
        self.kill_all()
        self._slot_table.close()
        self._address_table.close()

    # -- what they are told --------------------------------------------------------------------

    @staticmethod
    def tell(worker: Worker, number: int) -> None:
        """Send a signal to one."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, number)

    def tell_all(self, number: int) -> None:
        """Send a signal to all of them."""
        for worker in self:
            self.tell(worker, number)

    def stop_starting(self, worker: Worker) -> None:
        """Have a worker leave that has not come so far as to serve.

        Not by a kill: it may have accepted a client by now.
        """
        worker.leaving = True
        worker.killed_from = time.monotonic() + HEARTBEAT_TIMEOUT
        self.tell(worker, DRAIN_SIGNAL)
