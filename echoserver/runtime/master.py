"""The master of several worker processes on one listener (UNP 30.6: preforked).

The master binds, forks the workers and supervises them; it never touches a connection. Each worker
may run any backend. All workers accept from the one listening socket that they inherited, with no
locking around accept, because the kernel serializes it. They do not have a socket each
(SO_REUSEPORT), because closing one would reset the clients in its queue.
"""

import signal
import time
from math import inf

from echoserver.errors import BootError
from echoserver.lifecycle.state import ABORT_SIGNAL, DRAIN_SIGNAL, WAKE_SIGNAL
from echoserver.monitoring.counters import Totals
from echoserver.runtime.announcements import announce
from echoserver.runtime.backoff import BackOff
from echoserver.runtime.components import ServerComponents
from echoserver.runtime.plan import ServerPlan
from echoserver.runtime.rolling_reload import RollingReload
from echoserver.runtime.worker import Worker
from echoserver.runtime.workers import HEARTBEAT_TIMEOUT, Workers

_SUPERVISE_INTERVAL = 1.0  # seconds
_HEARTBEAT_INTERVAL = 6.0  # seconds between two pings of a worker; see write_patience
_SUSPENSION_THRESHOLD = (
    5.0  # seconds without supervision, in which workers may not have run, either
)
_KILL_GRACE = 2.0  # seconds after the drain's deadline before a worker is killed

_MIN_UPTIME = 1.0  # seconds: a worker that ends sooner is not restarted at once
_MAX_FAILED_STARTS = 3  # in a row, before any worker has served, until the master gives up


class Master:
    """Starts the workers, restarts those that end, replaces them on SIGHUP, ends them all."""

    def __init__(self, components: ServerComponents) -> None:
        self._sockets, self._lifecycle = components.sockets, components.lifecycle
        self._log, self._scoreboard = components.log, components.scoreboard
        self._sidecars = components.sidecars
        self._workers = Workers(components)
        self._reload = RollingReload(components, self._workers)
        self._back_off = BackOff()
        self._start_times: dict[int, float] = {}  # number of a worker to be started → when
        self._announced = False
        self._ever_served = False
        self._failed_starts = 0
        self._last_supervision = time.monotonic()

    def run(self) -> Totals:
        """Serve until the lifecycle ends it; return the totals of all workers.

        Raises:
            BootError: No worker ever became ready to serve.
        """
        lifecycle = self._lifecycle
        lifecycle.wake_on(signal.SIGCHLD)
        lifecycle.on_hangup(self._on_hangup)
        lifecycle.on_wake(self._reap)
        lifecycle.on_forced_end(lambda: self._workers.signal_all(signal.SIGKILL))
        try:
            for number in range(1, self._workers.count + 1):
                self._start(number, self._reload.plan)
            while lifecycle.running:
                self._supervise()
                lifecycle.block(lifecycle.next_wait(self._seconds_until_start()))
                lifecycle.dispatch_ready()
            self._drain()
        finally:
            self._workers.close()
        return self._workers.totals

    def _start(self, number: int, plan: ServerPlan) -> None:
        if not self._workers.start(number, plan):
            self._on_failed_start(number)

    # -- supervision ---------------------------------------------------------------------------

    def _seconds_until_start(self) -> float:
        pauses = (at - time.monotonic() for at in self._start_times.values())
        return max(0.0, min([_SUPERVISE_INTERVAL, *pauses]))

    def _supervise(self) -> None:
        """Promote workers that became ready, send heartbeats, restart those whose pause is over."""
        now = time.monotonic()
        suspended = now - self._last_supervision > _SUSPENSION_THRESHOLD
        self._last_supervision = now
        for worker in self._workers:
            if not (worker.ready or worker.leaving) and self._scoreboard.serves(worker.place):
                self._on_ready(worker)
            if now >= worker.kill_time and not self._scoreboard.serves(worker.place):
                self._workers.send_signal(worker, signal.SIGKILL)
            self._check_heartbeat(worker, now, suspended=suspended)
        for number, at in list(self._start_times.items()):
            if now >= at:
                del self._start_times[number]
                # The current plan is proven. But if no worker serves, the newest one may help.
                reload = self._reload
                plan = reload.plan if self._workers.any_serves else reload.newest_plan
                self._scoreboard.count_restart()
                self._start(number, plan)
        self._reload.replace_next()

    def _check_heartbeat(self, worker: Worker, now: float, *, suspended: bool) -> None:
        """Ping a worker if it is time, or kill it if it has not answered the last ping in time."""
        beat = self._scoreboard.last_beat(worker.place)
        if suspended and beat < worker.ping_time:  # probably suspended with us: ping it again
            worker.ping_time = now
            self._workers.send_signal(worker, WAKE_SIGNAL)
        waiting = now - worker.ping_time
        if beat < worker.ping_time and waiting > HEARTBEAT_TIMEOUT:
            self._log.error(
                "worker_hangs",
                worker=worker.number,
                worker_pid=worker.pid,
                seconds=round(waiting, 1),
            )
            self._workers.send_signal(worker, signal.SIGKILL)
        elif beat >= worker.ping_time and waiting >= _HEARTBEAT_INTERVAL:
            worker.ping_time = now
            self._workers.send_signal(worker, WAKE_SIGNAL)

    def _on_ready(self, worker: Worker) -> None:
        worker.ready = self._ever_served = True
        self._failed_starts = 0
        self._reload.on_ready(worker)
        self._log.info("worker_serves", worker=worker.number, worker_pid=worker.pid)
        if worker.replaces is not None:
            self._workers.send_signal(worker.replaces, DRAIN_SIGNAL)
            worker.replaces.leaving = True
            worker.replaces = None
        if not (self._announced or self._start_times) and all(one.ready for one in self._workers):
            self._announced = True
            details = {"workers": self._workers.count, **self._sidecars.metrics_address()}
            announce(self._reload.plan.config, self._sockets, self._log, **details)
            self._sidecars.ready()

    def _reap(self) -> None:
        """Reap the workers that have ended, and schedule or cancel their replacements."""
        for worker, code in self._workers.reap():
            # The kernel may have woken this worker for a client that it did not accept any more.
            self._workers.signal_all(WAKE_SIGNAL)
            running = self._lifecycle.running
            if worker.leaving or not running:
                self._log.info("worker_stopped", worker=worker.number, exit_code=code)
                number = worker.number
                if running and not (number in self._start_times or self._workers.has(number)):
                    self._start_times[number] = 0.0
                continue
            self._log.error("worker_died", worker=worker.number, exit_code=code)
            successor = self._reload.successor(worker)
            if worker.replaces is not None or self._reload.tries(worker):
                self._reload.give_up("a new worker died before it served")
            if successor is not None:
                successor.replaces = None  # the worker it was to replace is gone
            elif worker.replaces is None:
                self._restart(worker)

    def _restart(self, worker: Worker) -> None:
        """Schedule a new worker in place of one that died: at once, unless it keeps dying."""
        if worker.ready and time.monotonic() - worker.start_time > _MIN_UPTIME:
            self._back_off.reset(worker.number)
        if worker.ready and worker.number not in self._back_off:
            self._back_off.note_end(worker.number)
            self._start_times[worker.number] = 0.0
        else:
            self._on_failed_start(worker.number)

    def _on_failed_start(self, number: int) -> None:
        """Schedule another start of a worker that never served, a little later each time.

        Raises:
            BootError: No worker has ever served, and several have failed in a row.
        """
        self._failed_starts += 1
        if not self._ever_served and self._failed_starts >= _MAX_FAILED_STARTS:
            raise BootError("the workers end before they serve; the log says why")
        self._start_times[number] = time.monotonic() + self._back_off.next_pause(number)

    def _on_hangup(self) -> None:
        """Reload the configuration; the workers are then replaced one after the other."""
        if self._reload.read() and not self._workers.any_serves:
            # The new configuration may fix the failures, so do not wait for the back-off.
            self._start_times = dict.fromkeys(self._start_times, 0.0)

    # -- the end -------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Make all workers drain, wait for them, and abort those that take too long."""
        lifecycle, workers = self._lifecycle, self._workers
        self._log.info("draining", signal=lifecycle.signal_name, workers=len(workers))
        self._sockets.close()  # or the kernel would queue clients that nobody accepts
        self._scoreboard.drain_everyone()
        workers.signal_all(signal.SIGTERM)
        deadline = lifecycle.deadline + _KILL_GRACE
        aborted = False
        while workers and time.monotonic() < deadline:
            if lifecycle.killed and not aborted:
                aborted = True
                deadline = min(deadline, time.monotonic() + _KILL_GRACE)
                workers.signal_all(ABORT_SIGNAL)
            seconds = deadline - time.monotonic()
            lifecycle.block(lifecycle.next_wait(None if seconds == inf else max(0.0, seconds)))
            lifecycle.dispatch_ready()
        workers.totals.cut += len(workers)  # at least one each: they ended without a report
