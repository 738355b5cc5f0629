"""The resources of a process that serves: slots, quota, access log, publication."""

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
    """The resources of a process that serves."""

    slots: Slots
    """How many connections may be open at a time."""
    quota: Quota
    """How many each address has open, where that is limited."""
    access_log: "AccessLog | None" = None
    """The log to which each connection's end is written."""
    publish: Callable[[Vitals, Totals], None] | None = None
    """The function that publishes the vitals and totals; None: nothing reads them."""
    promptly: bool = False
    """Whether to publish when a connection begins or ends, and not only once a second.

    A process that may be killed needs this, and one that has no time in between.
    """
