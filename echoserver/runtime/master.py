"""Several processes, each with any backend, on one listener (UNP 30.6: preforked).

The master binds, forks the workers and watches over them; it never touches a connection. All
workers accept from the one listening socket that they inherited, with no locking around accept,
which the kernel does: with a socket each (SO_REUSEPORT), closing one would reset the clients in its
queue.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass, fields
from math import inf
from typing import NoReturn

from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.config import reread
from echoserver.conversation.failures import what_failed
from echoserver.errors import BootError, EchoServerError
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.lifecycle.state import LEAVE, NUDGE, RETIRE
from echoserver.monitoring.counters import Totals
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.runtime.announcements import announce, exit_code
from echoserver.runtime.design import Design
from echoserver.runtime.reload import certificate_expiry, take_effect
from echoserver.runtime.sidecars import Sidecars
from echoserver.service import Resources, Service
from echoserver.service.quota import AddressTable, SharedQuota
from echoserver.service.slots import SharedSlots, SlotTable
from echoserver.system.cpus import pin
from echoserver.system.processes import ParentalBond

_LOOK = 1.0  # seconds between two looks of the master at its workers
_PING = 6.0  # seconds between two questions to a worker whether it lives; see write_patience
_LONGEST_SILENCE = 20.0  # seconds after which a worker that has not answered is replaced
_SUSPENDED = 5.0  # seconds without a look: then nobody had time to answer, either
_FAREWELL = 2.0  # seconds beyond the drain's deadline until a worker is killed

# A worker that ends so soon after its start is not started again at once.
_TOO_SOON = 1.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_SUCCESSOR = 0  # the number under which failures of those who are to replace others are kept
_FUTILE_STARTS = 3  # in a row, before any worker has ever served: then the master gives up

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, RETIRE, LEAVE, NUDGE}


@dataclass(slots=True, eq=False)
class Worker:
    """A worker, as the master knows it."""

    number: int
    """From 1; who replaces it has the same."""
    pid: int
    place: int
    """On the scoreboard, and its account in the table."""
    design: Design
    """What it serves by."""
    started: float
    asked: float
    """When it was last asked whether it lives; its start is the first time."""
    replaces: "Worker | None" = None
    ready: bool = False
    leaving: bool = False
    """It was told to end."""
    killed_from: float = inf
    """When it is killed if it has still not come so far as to serve."""


class Master:
    """Starts the workers, restarts those that end, replaces them on SIGHUP, ends them all."""

    def __init__(
        self,
        design: Design,
        sockets: ListeningSockets,
        lifecycle: Lifecycle,
        log: Log,
        scoreboard: Scoreboard,
        sidecars: Sidecars,
    ) -> None:
        self._design = design
        """What has been seen to serve."""
        self._trial: tuple[Design, list[str]] | None = None
        """What a reload wants instead, until a worker serves by it; and what it cannot change."""
        self._sockets = sockets
        self._lifecycle = lifecycle
        self._log = log
        self._sidecars = sidecars
        self._count = scoreboard.numbers
        self._bond = ParentalBond()
        self._scoreboard = scoreboard
        self._slot_table = SlotTable(scoreboard.places, design.limit_of_all(self._count))
        self._address_table = AddressTable(scoreboard.places, design.most())
        self._workers: list[Worker] = []
        self._due: dict[int, float] = {}  # number of a worker that is to be started → when
        self._totals = Totals()
        self._announced = False
        self._ever_served = False
        self._futile = 0
        self._pauses: dict[int, float] = {}  # number of a worker that keeps failing → seconds
        self._replace_from = 0.0
        self._looked = time.monotonic()

    def run(self) -> Totals:
        """Serve until the lifecycle says otherwise; return what all workers did.

        Raises:
            BootError: No worker came so far as to serve.
        """
        lifecycle = self._lifecycle
        lifecycle.wake_on(signal.SIGCHLD)
        lifecycle.on_hangup(self._on_hangup)
        lifecycle.on_wake(self._reap)
        lifecycle.on_forced_end(self._tell_all_to_die)
        try:
            for number in range(1, self._count + 1):
                self._start(number, self._design)
            while lifecycle.running:
                self._look()
                lifecycle.block(lifecycle.something(self._next_look()))
                lifecycle.look()
            self._drain()
        finally:
            self._kill_all()
            self._slot_table.close()
            self._address_table.close()
        return self._totals

    # -- starting ------------------------------------------------------------------------------

    def _start(self, number: int, design: Design, replaces: Worker | None = None) -> None:
        """Fork a worker."""
        place = self._scoreboard.reserve(number)
        now = time.monotonic()  # before its first beat
        # A signal must find either the master's handlers or the worker's, and not the moment
        # between them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker(number, place, design)
        except OSError as error:  # the system has no process left
            self._scoreboard.settle(place, number)
            self._log.warning_each_second("worker_not_started", worker=number, error=str(error))
            if replaces is None:
                self._failed(number)
            else:
                self._give_up_replacing("the system has no process for a new worker")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        worker = Worker(number, pid, place, design, started=now, asked=now, replaces=replaces)
        self._workers.append(worker)
        self._log.info("worker_started", worker=number, worker_pid=pid)

    def _become_worker(self, number: int, place: int, design: Design) -> NoReturn:
        """In the child: serve, and end."""
        code = BootError.exit_code
        log = self._log
        try:
            scoreboard = self._scoreboard
            self._lifecycle.become_worker()
            self._sidecars.become_worker()
            lifecycle = Lifecycle(design.config.drain_timeout)

            def beat() -> None:
                scoreboard.beat(place)

            def alone() -> bool:
                return not scoreboard.everyone_drains

            lifecycle.install_workers_signals(beat, alone)
            beat()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._bond.tie(signal.SIGTERM)
            pin(design.config.affinity, number - 1)
            # What stderr is may be closed to the user that this has become: as it was opened then.
            log = self._log.of(design.config, worker=number)
            resources = Resources(
                SharedSlots(design.limit(), self._slot_table, place),
                SharedQuota(self._address_table, place),
                self._sidecars.access_log,
                lambda service: scoreboard.write(place, service.vitals, service.totals),
                promptly=True,
            )

            def ready(_service: Service) -> None:
                scoreboard.tell_serving(place)
                os.kill(os.getppid(), NUDGE)  # the master looks at the scoreboard

            totals = design.serve(self._sockets, lifecycle, log, resources, ready)
            code = exit_code(lifecycle, totals)
        except EchoServerError as error:
            log.error("worker_failed", reason=str(error))
        except BaseException as error:  # noqa: BLE001 - it is told, and nothing of it survives
            log.error("worker_failed", **what_failed(error))
        finally:
            os._exit(code)  # whatever clean-up there is belongs to the master

    # -- watching ------------------------------------------------------------------------------

    def _next_look(self) -> float:
        """Return the seconds until something is due."""
        return max(0.0, min([_LOOK, *(at - time.monotonic() for at in self._due.values())]))

    def _look(self) -> None:
        """Greet who has begun to serve, ask the others whether they live, start who is due."""
        now = time.monotonic()
        suspended = now - self._looked > _SUSPENDED
        self._looked = now
        for worker in list(self._workers):
            beat = self._scoreboard.last_beat(worker.place)
            if suspended and beat < worker.asked:  # with us: it is asked again
                worker.asked = now
                self._tell(worker, NUDGE)
            if not (worker.ready or worker.leaving) and self._scoreboard.serves(worker.place):
                self._on_ready(worker)
            if now >= worker.killed_from and not self._scoreboard.serves(worker.place):
                self._tell(worker, signal.SIGKILL)
            waiting = now - worker.asked
            if beat < worker.asked and waiting > _LONGEST_SILENCE:
                self._log.error(
                    "worker_hangs",
                    worker=worker.number,
                    worker_pid=worker.pid,
                    seconds=round(waiting, 1),
                )
                self._tell(worker, signal.SIGKILL)
            elif beat >= worker.asked and waiting >= _PING:
                worker.asked = now
                self._tell(worker, NUDGE)
        for number, at in list(self._due.items()):
            if now >= at:
                del self._due[number]
                # By what is known to serve, if anything does now.
                design = self._design if self._anybody_serves else self._newest_design
                self._scoreboard.count_restart()
                self._start(number, design)
        self._replace_next()

    def _on_ready(self, worker: Worker) -> None:
        worker.ready = self._ever_served = True
        self._futile = 0
        if self._trial is not None and self._tries(worker):
            self._adopt(*self._trial)
        self._log.info("worker_serves", worker=worker.number, worker_pid=worker.pid)
        if worker.replaces is not None:
            self._tell(worker.replaces, RETIRE)
            worker.replaces.leaving = True
            worker.replaces = None
        if not self._announced and all(one.ready for one in self._workers) and not self._due:
            self._announced = True
            more = {"workers": self._count, **self._sidecars.metrics_address()}
            announce(self._design.config, self._sockets, self._log, **more)
            self._sidecars.ready()

    def _reap(self) -> None:
        """Collect the workers that have ended, and see that others take their places."""
        for worker in list(self._workers):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            self._workers.remove(worker)
            self._settle(worker)
            for other in self._workers:  # it may have been told of a client, and have been too late
                self._tell(other, NUDGE)
            code = os.waitstatus_to_exitcode(status)
            if worker.leaving or not self._lifecycle.running:
                self._log.info("worker_stopped", worker=worker.number, exit_code=code)
                if self._lifecycle.running and not self._is_manned(worker.number):
                    self._due[worker.number] = 0.0
                continue
            self._log.error("worker_died", worker=worker.number, exit_code=code)
            successor = self._successor(worker)
            if worker.replaces is not None or self._tries(worker):
                self._give_up_replacing("a new worker died before it served")
            if successor is not None:
                successor.replaces = None  # there is nobody left to retire
            elif worker.replaces is None:
                self._start_again(worker)

    def _is_manned(self, number: int) -> bool:
        """Tell whether a worker has this number, or is about to be started with it."""
        return number in self._due or any(one.number == number for one in self._workers)

    def _successor(self, worker: Worker) -> Worker | None:
        """Return who is to replace a worker, if somebody is under way."""
        for one in self._workers:
            if one.replaces is worker and not one.leaving:
                return one
        return None

    def _start_again(self, worker: Worker) -> None:
        """Have another one take its place: at once, unless such deaths follow each other."""
        if worker.ready and time.monotonic() - worker.started > _TOO_SOON:
            self._pauses.pop(worker.number, None)
        if worker.ready and worker.number not in self._pauses:
            self._pauses[worker.number] = 0.0
            self._due[worker.number] = 0.0
        else:
            self._failed(worker.number)

    def _failed(self, number: int) -> None:
        """Have a worker that came to nothing started again, a little later each time.

        Raises:
            BootError: None has ever served, and several have failed in a row.
        """
        self._futile += 1
        if not self._ever_served and self._futile >= _FUTILE_STARTS:
            raise BootError("the workers end before they serve; the log says why")
        self._due[number] = time.monotonic() + self._longer_pause(number)

    def _longer_pause(self, number: int) -> float:
        """Return how many seconds to wait after one more failure of a worker."""
        pause = min(self._pauses.get(number, 0.0) * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
        self._pauses[number] = pause
        return pause

    def _settle(self, worker: Worker) -> None:
        """Take over what an ended worker has told, and give back the slots that it still held."""
        # Their accounts first: a place that is free may be the next worker's at once.
        self._slot_table.wipe(worker.place)
        self._address_table.wipe(worker.place)
        account = self._scoreboard.settle(worker.place, worker.number)
        for field in fields(Totals):
            name = field.name
            setattr(self._totals, name, getattr(self._totals, name) + getattr(account.totals, name))
        self._log.count_dropped(account.vitals.log_lines_dropped)

    # -- replacing -----------------------------------------------------------------------------

    def _on_hangup(self) -> None:
        """Read the configuration again; the workers are replaced one after the other."""
        self._sidecars.reloading()
        try:
            config, waiting = reread(self._design.config, in_workers=True)
            self._trial = Design.of(config, self._design, self._log), waiting
        except EchoServerError as error:
            self._scoreboard.note_reload(successful=False)
            self._log.error("reload_failed", reason=str(error))
        except Exception as error:  # noqa: BLE001 - a plugin's; whoever is served stays served
            self._scoreboard.note_reload(successful=False)
            self._log.error("reload_failed", **what_failed(error))
        else:
            self._supersede()
            if not self._anybody_serves:  # what is asked for may be what helps
                self._due = dict.fromkeys(self._due, 0.0)
            return
        self._sidecars.ready()

    def _supersede(self) -> None:
        """Have a successor leave that has not come so far as to serve: another design is wanted."""
        for worker in self._workers:
            if worker.replaces is not None and not worker.leaving:
                self._stop_starting(worker)

    def _stop_starting(self, worker: Worker) -> None:
        """Have a worker leave that has not come so far as to serve.

        Not by a kill: it may have accepted a client by now.
        """
        worker.leaving = True
        worker.killed_from = time.monotonic() + _LONGEST_SILENCE
        self._tell(worker, RETIRE)

    @property
    def _anybody_serves(self) -> bool:
        return any(worker.ready for worker in self._workers)

    @property
    def _newest_design(self) -> Design:
        """What all are to serve by, if it proves to serve."""
        return self._design if self._trial is None else self._trial[0]

    def _tries(self, worker: Worker) -> bool:
        """Tell whether it is to prove that a reload's design serves."""
        return self._trial is not None and worker.design is self._trial[0]

    def _adopt(self, design: Design, waiting: list[str]) -> None:
        """Let what was tried hold from now on: a worker serves by it."""
        before = self._design.config
        self._design, self._trial = design, None
        self._pauses.pop(_SUCCESSOR, None)
        self._slot_table.set_limit(design.limit_of_all(self._count))
        self._scoreboard.note_reload(successful=True)
        self._scoreboard.certificate_expiry = certificate_expiry(design.secure)
        take_effect(before, design.config, waiting, self._sockets, self._lifecycle, self._log)
        self._sidecars.ready()

    def _give_up_replacing(self, reason: str) -> None:
        """Stay with what is known to serve; the reload may be tried again later.

        Workers that are just starting by the design that failed would serve by it for a while.
        """
        for worker in self._workers:
            if self._tries(worker) and not worker.leaving:
                self._stop_starting(worker)
        self._trial = None
        self._scoreboard.note_reload(successful=False)
        self._log.error("reload_failed", reason=reason)
        self._sidecars.ready()
        self._replace_from = time.monotonic() + self._longer_pause(_SUCCESSOR)

    def _replace_next(self) -> None:
        """Start the next successor, once the one before it serves."""
        under_way = any(one.replaces and not one.leaving for one in self._workers)
        if under_way or not self._scoreboard.has_room or time.monotonic() < self._replace_from:
            return
        design = self._newest_design
        for worker in self._workers:
            if worker.ready and not worker.leaving and worker.design is not design:
                self._start(worker.number, design, replaces=worker)
                return

    # -- the end -------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Have every worker drain, and wait for them."""
        lifecycle = self._lifecycle
        self._log.info("draining", signal=lifecycle.signal_name, workers=len(self._workers))
        self._sockets.close()  # or clients would queue for nobody
        self._scoreboard.drain_everyone()
        for worker in self._workers:
            self._tell(worker, signal.SIGTERM)
        last = lifecycle.deadline + _FAREWELL
        killed = False
        while self._workers and time.monotonic() < last:
            if lifecycle.killed and not killed:
                killed = True
                last = min(last, time.monotonic() + _FAREWELL)
                for worker in self._workers:
                    self._tell(worker, LEAVE)
            left = last - time.monotonic()
            lifecycle.block(lifecycle.something(None if left == inf else max(0.0, left)))
            lifecycle.look()
        for _ in self._workers:
            self._totals.cut += 1  # at least; it did not even tell

    def _tell_all_to_die(self) -> None:
        for worker in self._workers:
            self._tell(worker, signal.SIGKILL)

    def _kill_all(self) -> None:
        self._tell_all_to_die()
        for worker in self._workers:
            os.waitpid(worker.pid, 0)
            self._settle(worker)
        self._workers.clear()

    @staticmethod
    def _tell(worker: Worker, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, number)
