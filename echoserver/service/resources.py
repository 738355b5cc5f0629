"""What a process has to serve with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echoserver.monitoring.counters import (
    Totals,
    Vitals,
)
from echoserver.service.quota import Quota
from echoserver.service.slots import Slots

if TYPE_CHECKING:
    from echoserver.monitoring.access_log import AccessLog


@dataclass(slots=True)
class Resources:
    """What a process has to serve with."""

    slots: Slots
    """How many connections may be open at a time."""
    quota: Quota
    """How many each address has open, where that is limited."""
    access_log: "AccessLog | None" = None
    """Where to write how connections went."""
    publish: Callable[[Vitals, Totals], None] | None = None
    """Publishes how the process fares, and what it has done; None: nobody reads that."""
    promptly: bool = False
    """Publish whenever a connection begins or ends, and not only once a second: for a process that
    may be killed, and one that has no time in between."""
