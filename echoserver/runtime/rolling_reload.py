"""A reload of a server with workers: tried by one, then taken over by all, one after the other."""

import time

from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.config import reload_config
from echoserver.conversation.failures import describe_exception
from echoserver.errors import EchoServerError
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.log import Log
from echoserver.runtime.backoff import BackOff
from echoserver.runtime.design import ServerPlan
from echoserver.runtime.reload import apply_reload, certificate_expiry
from echoserver.runtime.sidecars import Sidecars
from echoserver.runtime.worker import Worker
from echoserver.runtime.workers import Workers

_SUCCESSOR = 0  # the number under which failures of those who are to replace others are kept


class RollingReload:
    """Which design holds, which is on trial, and who is replaced next."""

    def __init__(
        self,
        design: ServerPlan,
        workers: Workers,
        sockets: ListeningSockets,
        lifecycle: Lifecycle,
        log: Log,
        sidecars: Sidecars,
    ) -> None:
        self.design = design
        """What has been seen to serve."""
        self._trial: tuple[ServerPlan, list[str]] | None = None
        """What a reload wants instead, until a worker serves by it; and what it cannot change."""
        self._workers, self._sockets, self._lifecycle = workers, sockets, lifecycle
        self._log, self._sidecars = log, sidecars
        self._back_off = BackOff()
        self._replace_from = 0.0

    @property
    def newest_design(self) -> ServerPlan:
        """What all are to serve by, if it proves to serve."""
        return self.design if self._trial is None else self._trial[0]

    def tries(self, worker: Worker) -> bool:
        """Tell whether it is to prove that a reload's design serves."""
        return self._trial is not None and worker.design is self._trial[0]

    def read(self) -> bool:
        """Read the configuration again; tell whether there is a new design to be tried."""
        self._sidecars.reloading()
        try:
            config, waiting = reload_config(self.design.config, in_workers=True)
            self._trial = ServerPlan.of(config, self.design, self._log), waiting
        except EchoServerError as error:
            self._fail(reason=str(error))
        except Exception as error:  # noqa: BLE001 - a plugin's; connections that are open stay open
            self._fail(**describe_exception(error))
        else:
            self._supersede()
            return True
        return False

    def _fail(self, **about: str) -> None:
        self._workers.scoreboard.note_reload(successful=False)
        self._log.error("reload_failed", **about)
        self._sidecars.ready()

    def _supersede(self) -> None:
        """Have a successor leave that has not come so far as to serve: another design is wanted."""
        for worker in self._workers:
            if worker.replaces is not None and not worker.leaving:
                self._workers.stop_starting(worker)

    def on_ready(self, worker: Worker) -> None:
        """A worker serves: if it does so by a design on trial, that holds from now on."""
        if self._trial is None or not self.tries(worker):
            return
        (design, waiting), before = self._trial, self.design.config
        self.design, self._trial = design, None
        self._back_off.reset(_SUCCESSOR)
        self._workers.set_limit(design)
        scoreboard = self._workers.scoreboard
        scoreboard.note_reload(successful=True)
        scoreboard.certificate_expiry = certificate_expiry(design.secure)
        apply_reload(before, design.config, waiting, self._sockets, self._lifecycle, self._log)
        self._sidecars.ready()

    def give_up(self, reason: str) -> None:
        """Stay with what is known to serve; the reload may be tried again later.

        Workers that are just starting by the design that failed would serve by it for a while.
        """
        for worker in self._workers:
            if self.tries(worker) and not worker.leaving:
                self._workers.stop_starting(worker)
        self._trial = None
        self._fail(reason=reason)
        self._replace_from = time.monotonic() + self._back_off.next_pause(_SUCCESSOR)

    def successor(self, worker: Worker) -> Worker | None:
        """Return who is to replace a worker, if somebody is under way."""
        for one in self._workers:
            if one.replaces is worker and not one.leaving:
                return one
        return None

    def replace_next(self) -> None:
        """Start the next successor, once the one before it serves."""
        under_way = any(one.replaces and not one.leaving for one in self._workers)
        has_room = self._workers.scoreboard.has_room
        if under_way or not has_room or time.monotonic() < self._replace_from:
            return
        design = self.newest_design
        for worker in self._workers:
            if worker.ready and not worker.leaving and worker.design is not design:
                if not self._workers.start(worker.number, design, replaces=worker):
                    self.give_up("the system has no process for a new worker")
                return
