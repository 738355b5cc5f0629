"""Rolling reloads: one worker tries the new plan, then all are replaced, one after the other."""

import time

from echoserver.config import reload_config
from echoserver.conversation.failures import describe_exception
from echoserver.errors import EchoServerError
from echoserver.runtime.backoff import BackOff
from echoserver.runtime.components import ServerComponents
from echoserver.runtime.plan import ServerPlan
from echoserver.runtime.reload import apply_reload, certificate_expiry
from echoserver.runtime.worker import Worker
from echoserver.runtime.workers import Workers

_SUCCESSOR = 0  # stands for any successor in the back-off, as workers are numbered from 1


class RollingReload:
    """Keeps the current plan and the one on trial, and replaces workers one by one."""

    def __init__(self, components: ServerComponents, workers: Workers) -> None:
        self.plan = components.plan
        """The current plan, by which workers have served."""
        self._trial: tuple[ServerPlan, list[str]] | None = None
        """The plan of a reload until a worker serves by it, and the options that need a restart."""
        self._workers = workers
        self._sockets, self._lifecycle = components.sockets, components.lifecycle
        self._log, self._sidecars = components.log, components.sidecars
        self._back_off = BackOff()
        self._next_attempt = 0.0  # earliest time at which the next successor may start

    @property
    def newest_plan(self) -> ServerPlan:
        """The plan that all workers will serve by, if it proves to serve."""
        return self.plan if self._trial is None else self._trial[0]

    def tries(self, worker: Worker) -> bool:
        """Tell whether a worker tries the plan on trial."""
        return self._trial is not None and worker.plan is self._trial[0]

    def read(self) -> bool:
        """Reload the configuration, and tell whether there is a new plan to be tried."""
        self._sidecars.reloading()
        try:
            config, restart_options = reload_config(self.plan.config, in_workers=True)
            self._trial = ServerPlan.of(config, self.plan, self._log), restart_options
        except EchoServerError as error:
            self._fail(reason=str(error))
        except Exception as error:  # noqa: BLE001 - a plugin's error must not end open connections
            self._fail(**describe_exception(error))
        else:
            self._supersede()
            return True
        return False

    def _fail(self, **details: str) -> None:
        self._workers.scoreboard.record_reload(successful=False)
        self._log.error("reload_failed", **details)
        self._sidecars.ready()

    def _supersede(self) -> None:
        """Stop the successor that does not serve yet, because a newer plan replaces its plan."""
        for worker in self._workers:
            if worker.replaces is not None and not worker.leaving:
                self._workers.stop_starting(worker)

    def on_ready(self, worker: Worker) -> None:
        """Make the plan on trial the current one, if `worker` has become ready by it."""
        if self._trial is None or not self.tries(worker):
            return
        (plan, restart_options), before = self._trial, self.plan.config
        self.plan, self._trial = plan, None
        self._back_off.reset(_SUCCESSOR)
        self._workers.set_limit(plan)
        scoreboard = self._workers.scoreboard
        scoreboard.record_reload(successful=True)
        scoreboard.certificate_expiry = certificate_expiry(plan.secure)
        apply_reload(
            before, plan.config, restart_options, self._sockets, self._lifecycle, self._log
        )
        self._sidecars.ready()

    def give_up(self, reason: str) -> None:
        """Stay with the current plan; the operator may try the reload again later.

        Workers that are starting by the plan that failed are stopped, because they might serve by
        it for a while.
        """
        for worker in self._workers:
            if self.tries(worker) and not worker.leaving:
                self._workers.stop_starting(worker)
        self._trial = None
        self._fail(reason=reason)
        self._next_attempt = time.monotonic() + self._back_off.next_pause(_SUCCESSOR)

    def successor(self, worker: Worker) -> Worker | None:
        """Return the worker that is starting in order to replace `worker`, if any."""
        for one in self._workers:
            if one.replaces is worker and not one.leaving:
                return one
        return None

    def replace_next(self) -> None:
        """Start the next successor, once the one before it serves."""
        starting = any(one.replaces and not one.leaving for one in self._workers)
        has_room = self._workers.scoreboard.has_room
        if starting or not has_room or time.monotonic() < self._next_attempt:
            return
        plan = self.newest_plan
        for worker in self._workers:
            if worker.ready and not worker.leaving and worker.plan is not plan:
                if not self._workers.start(worker.number, plan, replaces=worker):
                    self.give_up("the system cannot start another process for a new worker")
                return
