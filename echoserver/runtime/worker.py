"""One worker: a process that serves by a plan, and the master's record of it."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import NoReturn

from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.conversation.failures import describe_exception
from echoserver.errors import BootError, EchoServerError
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.lifecycle.state import ABORT_SIGNAL, DRAIN_SIGNAL, WAKE_SIGNAL
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.runtime.announcements import exit_code
from echoserver.runtime.plan import ServerPlan
from echoserver.service import Service
from echoserver.service.resources import Resources
from echoserver.system.cpus import pin
from echoserver.system.processes import ParentDeathSignal

SIGNALS = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, DRAIN_SIGNAL, ABORT_SIGNAL, WAKE_SIGNAL}
)
"""The signals that master and workers handle, each in their own way."""


@dataclass(slots=True, eq=False)
class Worker:
    """The master's record of a worker."""

    number: int
    """The worker's number, from 1. Its successor has the same."""
    pid: int
    place: int
    """The worker's place on the scoreboard, and in the tables of slots and addresses."""
    plan: ServerPlan
    start_time: float
    ping_time: float
    """When the worker was last pinged. Its start counts as the first ping."""
    replaces: "Worker | None" = None
    ready: bool = False
    leaving: bool = False
    """The worker was told to end."""
    kill_time: float = inf
    """When the worker is killed, if it still does not serve by then."""


@dataclass(frozen=True, slots=True)
class Duty:
    """What a new worker needs to know."""

    number: int
    """The worker's number, from 1."""
    place: int
    """The worker's place on the scoreboard."""
    plan: ServerPlan
    sockets: ListeningSockets
    make_resources: Callable[[int, ServerPlan], Resources]
    """Returns the resources of the worker at a place."""
    leave_master: Callable[[], None]
    """Closes the child's copies of what belongs to the master only."""


def serve_as_worker(
    duty: Duty, scoreboard: Scoreboard, bond: ParentDeathSignal, log: Log
) -> NoReturn:
    """Serve in the child, and exit.

    Signals are blocked until their handlers are installed.
    """
    code = BootError.exit_code
    try:
        duty.leave_master()
        config, place = duty.plan.config, duty.place
        lifecycle = Lifecycle(config.drain_timeout)

        def beat() -> None:
            scoreboard.heartbeat(place)

        def is_alone() -> bool:
            return not scoreboard.everyone_drains

        lifecycle.install_workers_signals(beat, is_alone)
        beat()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        bond.arm(signal.SIGTERM)
        pin(config.affinity, duty.number - 1)
        # The user that this process has switched to may not be allowed to open stderr, so the log
        # keeps the descriptor that was opened before.
        log = log.of(config, worker=duty.number)

        def ready(_service: Service) -> None:
            scoreboard.mark_serving(place)
            os.kill(os.getppid(), WAKE_SIGNAL)  # makes the master read the scoreboard

        resources = duty.make_resources(place, duty.plan)
        totals = duty.plan.serve(duty.sockets, lifecycle, log, resources, ready)
        code = exit_code(lifecycle, totals)
    except EchoServerError as error:
        log.error("worker_failed", reason=str(error))
    except BaseException as error:  # noqa: BLE001 - it is logged, and the process ends
        log.error("worker_failed", **describe_exception(error))
    finally:
        os._exit(code)  # all clean-up belongs to the master
