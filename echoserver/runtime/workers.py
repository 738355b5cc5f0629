"""The workers of one master: forking, signalling, and reaping them."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

from echoserver.lifecycle.state import DRAIN_SIGNAL
from echoserver.monitoring.counters import Totals
from echoserver.runtime.components import ServerComponents
from echoserver.runtime.plan import ServerPlan
from echoserver.runtime.worker import SIGNALS, Duty, Worker, serve_as_worker
from echoserver.service.quota import AddressTable, SharedQuota
from echoserver.service.resources import Resources
from echoserver.service.slots import SharedSlots, SlotTable
from echoserver.system.processes import ParentDeathSignal

HEARTBEAT_TIMEOUT = 20.0
"""Seconds after which a worker that has not answered is replaced."""


class Workers:
    """The living workers, and the slots, addresses and scoreboard that they share.

    Iterating over them is safe while workers are added or removed.
    """

    def __init__(self, components: ServerComponents) -> None:
        plan, scoreboard = components.plan, components.scoreboard
        self._sockets, self._lifecycle = components.sockets, components.lifecycle
        self._log, self._sidecars = components.log, components.sidecars
        self.scoreboard = scoreboard
        self.count = scoreboard.workers
        """How many workers there should be."""
        self.totals = Totals()
        """The totals of the workers that have ended."""
        self._parent_death_signal = ParentDeathSignal()
        self._slot_table = SlotTable(scoreboard.places, plan.total_limit(self.count))
        self._address_table = AddressTable(scoreboard.places, plan.configured_limit())
        self._living: list[Worker] = []

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._living))

    def __len__(self) -> int:
        return len(self._living)

    @property
    def any_serves(self) -> bool:
        """Whether at least one worker serves."""
        return any(worker.ready for worker in self._living)

    def has(self, number: int) -> bool:
        """Tell whether a worker with that number lives."""
        return any(worker.number == number for worker in self._living)

    def set_limit(self, plan: ServerPlan) -> None:
        """Set how many connections the workers may have open together to the limit of `plan`."""
        self._slot_table.set_limit(plan.total_limit(self.count))

    # -- starting and reaping ------------------------------------------------------------------

    def start(self, number: int, plan: ServerPlan, replaces: Worker | None = None) -> bool:
        """Fork a worker.

        Returns:
            Whether that succeeded: the system may not allow another process.
        """
        place = self.scoreboard.reserve(number)
        duty = Duty(number, place, plan, self._sockets, self._make_resources, self._leave_master)
        now = time.monotonic()  # before its first heartbeat
        # A signal must meet either the master's handlers or the worker's, and no state in between.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                serve_as_worker(duty, self.scoreboard, self._parent_death_signal, self._log)
        except OSError as error:
            self.scoreboard.retire_slot(place, number)
            self._log.warning_each_second("worker_not_started", worker=number, error=str(error))
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        worker = Worker(number, pid, place, plan, start_time=now, ping_time=now, replaces=replaces)
        self._living.append(worker)
        self._log.info("worker_started", worker=number, worker_pid=pid)
        return True

    def _leave_master(self) -> None:
        self._lifecycle.become_worker()
        self._sidecars.become_worker()

    def _make_resources(self, place: int, plan: ServerPlan) -> Resources:
        return Resources(
            SharedSlots(plan.process_limit(), self._slot_table, place),
            SharedQuota(self._address_table, place),
            self._sidecars.access_log,
            partial(self.scoreboard.write, place),
            promptly=True,
        )

    def reap(self) -> Iterator[tuple[Worker, int]]:
        """Reap the workers that have ended; yield each with its exit code."""
        for worker in self:
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._living.remove(worker)
                self._settle(worker)
                yield worker, os.waitstatus_to_exitcode(status)

    def _settle(self, worker: Worker) -> None:
        """Take over the totals of a worker that has ended, and free its slots and its place."""
        # The tables first: a free place may be the next worker's at once.
        self._slot_table.wipe(worker.place)
        self._address_table.wipe(worker.place)
        account = self.scoreboard.retire_slot(worker.place, worker.number)
        self.totals.add(account.totals)
        self._log.count_dropped(account.vitals.log_lines_dropped)

    def kill_all(self) -> None:
        """Kill and reap the remaining workers."""
        self.signal_all(signal.SIGKILL)
        for worker in self:
            os.waitpid(worker.pid, 0)
            self._settle(worker)
        self._living.clear()

    def close(self) -> None:
        """Kill the remaining workers, and close the tables that they shared."""
        self.kill_all()
        self._slot_table.close()
        self._address_table.close()

    # -- signals -------------------------------------------------------------------------------

    @staticmethod
    def send_signal(worker: Worker, number: int) -> None:
        """Send a signal to one worker."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, number)

    def signal_all(self, number: int) -> None:
        """Send a signal to all workers."""
        for worker in self:
            self.send_signal(worker, number)

    def stop_starting(self, worker: Worker) -> None:
        """Tell a worker that does not serve yet to end.

        It is not killed at once, because it may have accepted a client by now.
        """
        worker.leaving = True
        worker.kill_time = time.monotonic() + HEARTBEAT_TIMEOUT
        self.send_signal(worker, DRAIN_SIGNAL)
