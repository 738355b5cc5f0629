"""One worker: a process that serves by a design, and what its master knows of it."""

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
from echoserver.runtime.design import ServerPlan
from echoserver.service import Service
from echoserver.service.resources import Resources
from echoserver.system.cpus import pin
from echoserver.system.processes import ParentDeathSignal

SIGNALS = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, DRAIN_SIGNAL, ABORT_SIGNAL, WAKE_SIGNAL}
)
"""The signals that master and workers handle, each in its own way."""


@dataclass(slots=True, eq=False)
class Worker:
    """A worker, as the master knows it."""

    number: int
    """From 1; who replaces it has the same."""
    pid: int
    place: int
    """On the scoreboard, and its account in the table."""
    design: ServerPlan
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


@dataclass(frozen=True, slots=True)
class Duty:
    """What a worker is to serve by, and as which one."""

    number: int
    """From 1."""
    place: int
    """On the scoreboard."""
    design: ServerPlan
    sockets: ListeningSockets
    make_resources: Callable[[int, ServerPlan], Resources]
    """Returns what the worker at a place has to serve with."""
    leave_master: Callable[[], None]
    """Closes the child's copies of what is the master's alone."""


def serve_as_worker(
    duty: Duty, scoreboard: Scoreboard, bond: ParentDeathSignal, log: Log
) -> NoReturn:
    """In the child: serve, and end.

    Signals are blocked until their handlers are installed.
    """
    code = BootError.exit_code
    try:
        duty.leave_master()
        config, place = duty.design.config, duty.place
        lifecycle = Lifecycle(config.drain_timeout)

        def beat() -> None:
            scoreboard.heartbeat(place)

        def alone() -> bool:
            return not scoreboard.everyone_drains

        lifecycle.install_workers_signals(beat, alone)
        beat()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        bond.arm(signal.SIGTERM)
        pin(config.affinity, duty.number - 1)
        # What stderr is may be closed to the user that this has become: as it was opened then.
        log = log.of(config, worker=duty.number)

        def ready(_service: Service) -> None:
            scoreboard.tell_serving(place)
            os.kill(os.getppid(), WAKE_SIGNAL)  # the master looks at the scoreboard

        resources = duty.make_resources(place, duty.design)
        totals = duty.design.serve(duty.sockets, lifecycle, log, resources, ready)
        code = exit_code(lifecycle, totals)
    except EchoServerError as error:
        log.error("worker_failed", reason=str(error))
    except BaseException as error:  # noqa: BLE001 - it is told, and nothing of it survives
        log.error("worker_failed", **describe_exception(error))
    finally:
        os._exit(code)  # whatever clean-up there is belongs to the master
