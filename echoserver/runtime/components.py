"""The parts of one running server, which its master's classes share."""

from dataclasses import dataclass

from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.lifecycle.main_wait import Lifecycle
from echoserver.monitoring.log import Log
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.runtime.plan import ServerPlan
from echoserver.runtime.sidecars import Sidecars


@dataclass(frozen=True, slots=True)
class ServerComponents:
    """What one running server consists of, made once at its start."""

    plan: ServerPlan
    """The plan that the server starts with. A reload replaces it in `RollingReload`, not here."""
    sockets: ListeningSockets
    lifecycle: Lifecycle
    """The lifecycle of the process that started the server."""
    log: Log
    scoreboard: Scoreboard
    sidecars: Sidecars
