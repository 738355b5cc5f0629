"""Several processes, each with any backend, on one listener (UNP 30.6: preforked).

The master binds, forks the workers and watches over them; it never touches a connection. All
workers accept from the one listening socket that they inherited, with no locking around accept,
which the kernel does: with a socket each (SO_REUSEPORT), closing one would reset the clients in its
queue.
"""

import signal
import time
from math import inf

from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.errors import BootError
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.lifecycle.state import ABORT_SIGNAL, DRAIN_SIGNAL, WAKE_SIGNAL
from echoserver.monitoring.counters import Totals
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.runtime.announcements import announce
from echoserver.runtime.backoff import BackOff
from echoserver.runtime.design import ServerPlan
from echoserver.runtime.rolling_reload import RollingReload
from echoserver.runtime.sidecars import Sidecars
from echoserver.runtime.worker import Worker
from echoserver.runtime.workers import HEARTBEAT_TIMEOUT, Workers

_SUPERVISE_INTERVAL = 1.0  # seconds between two looks of the master at its workers
_HEARTBEAT_INTERVAL = 6.0  # seconds between two questions to a worker; see write_patience
_SUSPENDED = 5.0  # seconds without a look: then nobody had time to answer, either
_KILL_GRACE = 2.0  # seconds beyond the drain's deadline until a worker is killed

_MIN_UPTIME = 1.0  # seconds: a worker that ends sooner is not started again at once
_MAX_FAILED_STARTS = 3  # in a row, before any worker has ever served: then the master gives up


class Master:
    """Starts the workers, restarts those that end, replaces them on SIGHUP, ends them all."""

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
        self._sidecars, self._scoreboard = sidecars, scoreboard
        self._workers = Workers(design, sockets, lifecycle, log, scoreboard, sidecars)
        self._reload = RollingReload(design, self._workers, sockets, lifecycle, log, sidecars)
        self._back_off = BackOff()
        self._due: dict[int, float] = {}  # number of a worker that is to be started → when
        self._announced = False
        self._ever_served = False
        self._failed_starts = 0
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
        lifecycle.on_forced_end(lambda: self._workers.tell_all(signal.SIGKILL))
        try:
            for number in range(1, self._workers.count + 1):
                self._start(number, self._reload.design)
            while lifecycle.running:
                self._supervise()
                lifecycle.block(lifecycle.next_wait(self._seconds_until_due()))
                lifecycle.dispatch_ready()
            self._drain()
        finally:
            self._workers.close()
        return self._workers.totals

    def _start(self, number: int, design: ServerPlan) -> None:
        if not self._workers.start(number, design):
            self._on_failed_start(number)

    # -- watching ------------------------------------------------------------------------------

    def _seconds_until_due(self) -> float:
        pauses = (at - time.monotonic() for at in self._due.values())
        return max(0.0, min([_SUPERVISE_INTERVAL, *pauses]))

    def _supervise(self) -> None:
        """Promote workers that became ready, send heartbeats, restart those whose pause is over."""
        now = time.monotonic()
        suspended = now - self._looked > _SUSPENDED
        self._looked = now
        for worker in self._workers:
            if not (worker.ready or worker.leaving) and self._scoreboard.serves(worker.place):
                self._on_ready(worker)
            if now >= worker.killed_from and not self._scoreboard.serves(worker.place):
                self._workers.tell(worker, signal.SIGKILL)
            self._check_heartbeat(worker, now, suspended=suspended)
        for number, at in list(self._due.items()):
            if now >= at:
                del self._due[number]
                # By what is known to serve, if anything does now.
                reload = self._reload
                design = reload.design if self._workers.any_serves else reload.newest_design
                self._scoreboard.count_restart()
                self._start(number, design)
        self._reload.replace_next()

    def _check_heartbeat(self, worker: Worker, now: float, *, suspended: bool) -> None:
        """Ask a worker whether it lives, or kill it where it has not answered in time."""
        beat = self._scoreboard.last_beat(worker.place)
        if suspended and beat < worker.asked:  # with us: it is asked again
            worker.asked = now
            self._workers.tell(worker, WAKE_SIGNAL)
        waiting = now - worker.asked
        if beat < worker.asked and waiting > HEARTBEAT_TIMEOUT:
            self._log.error(
                "worker_hangs",
                worker=worker.number,
                worker_pid=worker.pid,
                seconds=round(waiting, 1),
            )
            self._workers.tell(worker, signal.SIGKILL)
        elif beat >= worker.asked and waiting >= _HEARTBEAT_INTERVAL:
            worker.asked = now
            self._workers.tell(worker, WAKE_SIGNAL)

    def _on_ready(self, worker: Worker) -> None:
        worker.ready = self._ever_served = True
        self._failed_starts = 0
        self._reload.on_ready(worker)
        self._log.info("worker_serves", worker=worker.number, worker_pid=worker.pid)
        if worker.replaces is not None:
            self._workers.tell(worker.replaces, DRAIN_SIGNAL)
            worker.replaces.leaving = True
            worker.replaces = None
        if not self._announced and all(one.ready for one in self._workers) and not self._due:
            self._announced = True
            more = {"workers": self._workers.count, **self._sidecars.metrics_address()}
            announce(self._reload.design.config, self._sockets, self._log, **more)
            self._sidecars.ready()

    def _reap(self) -> None:
        """Collect the workers that have ended, and see that others take their places."""
        for worker, code in self._workers.reap():
            self._workers.tell_all(
                WAKE_SIGNAL
            )  # it may have been told of a client, and been too late
            running = self._lifecycle.running
            if worker.leaving or not running:
                self._log.info("worker_stopped", worker=worker.number, exit_code=code)
                if running and not (worker.number in self._due or self._workers.has(worker.number)):
                    self._due[worker.number] = 0.0
                continue
            self._log.error("worker_died", worker=worker.number, exit_code=code)
            successor = self._reload.successor(worker)
            if worker.replaces is not None or self._reload.tries(worker):
                self._reload.give_up("a new worker died before it served")
            if successor is not None:
                successor.replaces = None  # there is nobody left to retire
            elif worker.replaces is None:
                self._restart(worker)

    def _restart(self, worker: Worker) -> None:
        """Have another one take its place: at once, unless such deaths follow each other."""
        if worker.ready and time.monotonic() - worker.started > _MIN_UPTIME:
            self._back_off.reset(worker.number)
        if worker.ready and worker.number not in self._back_off:
            self._back_off.note_end(worker.number)
            self._due[worker.number] = 0.0
        else:
            self._on_failed_start(worker.number)

    def _on_failed_start(self, number: int) -> None:
        """Have a worker that came to nothing started again, a little later each time.

        Raises:
            BootError: None has ever served, and several have failed in a row.
        """
        self._failed_starts += 1
        if not self._ever_served and self._failed_starts >= _MAX_FAILED_STARTS:
            raise BootError("the workers end before they serve; the log says why")
        self._due[number] = time.monotonic() + self._back_off.next_pause(number)

    def _on_hangup(self) -> None:
        """Read the configuration again; the workers are replaced one after the other."""
        if self._reload.read() and not self._workers.any_serves:
            self._due = dict.fromkeys(self._due, 0.0)  # what is asked for may be what helps

    # -- the end -------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Have every worker drain, and wait for them."""
        lifecycle, workers = self._lifecycle, self._workers
        self._log.info("draining", signal=lifecycle.signal_name, workers=len(workers))
        self._sockets.close()  # or clients would queue for nobody
        self._scoreboard.drain_everyone()
        workers.tell_all(signal.SIGTERM)
        last = lifecycle.deadline + _KILL_GRACE
        killed = False
        while workers and time.monotonic() < last:
            if lifecycle.killed and not killed:
                killed = True
                last = min(last, time.monotonic() + _KILL_GRACE)
                workers.tell_all(ABORT_SIGNAL)
            left = last - time.monotonic()
            lifecycle.block(lifecycle.next_wait(None if left == inf else max(0.0, left)))
            lifecycle.dispatch_ready()
        workers.totals.cut += len(workers)  # at least; they did not even tell
