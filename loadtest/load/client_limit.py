"""Did a run measure the server, or the client?

A closed loop is as fast as the slower of the two. A report that calls the client's limit a server's
result is wrong by any factor, so each round is judged, and what the client limited is printed as
``≥ N``: the server can do at least that. Server CPU per message stays valid: it does not depend on
how often the client asks.
"""

from dataclasses import dataclass, field

from clients.load_result import LoadResult
from clients.workload import Workload

_BUSY_SHARE = 0.90
"""Of a core. Under the GIL, a process of the client cannot use more than one."""

_SATURATED_SHARE = 0.95
"""Of what a server can use: it could not have answered more."""

_CROWDED_SHARE = 0.97
"""Of the client's cores, by all processes; and of that, the client's part."""
_CLIENT_PART = 0.4

_NEAR_CAPACITY = 0.90
"""Of the capacity of this engine, which only the engine itself limited."""

_LATE_US = 1_000
_LATE_SHARE = 0.2
"""If the client's own lateness is this share of the latency, the latency is not the server's."""

_KEPT_UP_SHARE = 0.99
"""Of the messages that were due; with fewer, the rate was not kept up."""


@dataclass(frozen=True, slots=True)
class ClientLimit:
    """The reasons why the client was the limit; empty: it was not."""

    reasons: tuple[str, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.reasons)


def judge(
    load: LoadResult,
    workload: Workload,
    *,
    client_share: float,
    client_waited: float = 0.0,
    client_cores_busy: float | None = None,
    server_share: float | None,
    busiest_server_thread: float | None,
    capacity: float | None,
) -> ClientLimit:
    """Tell whether a run measured its client rather than its server.

    Args:
        load: The result of the round.
        workload: Its workload.
        client_share: How much of a core each process of the client used.
        client_waited: The share of the time that it was ready to run while another process had its
            core.
        client_cores_busy: The share of the time that its cores were not idle. Other processes may
            have had a part, which the client could not have had; None: they are not its own.
        server_share: CPU time of the server, as a share of the cores it may use; None: unknown.
        busiest_server_thread: CPU time of its busiest thread, as a share of a core; None: unknown.
        capacity: Messages per second that the client is known to reach; None: unknown.
    """
    if not load.verified or 2 * load.gone > workload.asking:
        return ClientLimit()  # without connections, the client is not what limits the rate
    reasons = []
    demand = client_share + client_waited
    crowded = (client_cores_busy or 0.0) >= _CROWDED_SHARE and demand >= _CLIENT_PART
    client_busy = demand >= _BUSY_SHARE or crowded
    rate = load.verified / load.seconds if load.seconds else 0.0
    if client_share >= _BUSY_SHARE:
        reasons.append(f"its CPU was busy for {_BUSY_SHARE:.0%} of the time or more")
    elif client_busy:
        reasons.append("its core was never idle, and another program had it for part of the time")
    if capacity and comparable(workload) and rate >= _NEAR_CAPACITY * capacity:
        reasons.append(f"it was near its calibrated limit of {capacity:,.0f} messages/s")
    server_busy = max(server_share or 0.0, busiest_server_thread or 0.0) >= _SATURATED_SHARE
    if workload.rate is None:
        return ClientLimit(() if server_busy else tuple(reasons))
    # With a schedule, a busy client that is in time is not the limit, and a late one is, even
    # beside a busy server: what was late is known message by message.
    late_us = load.lag.get_value_at_percentile(99)
    latency_us = load.latency.get_value_at_percentile(99)
    if late_us > _LATE_US and late_us > _LATE_SHARE * latency_us:
        return ClientLimit((f"it sent 1 % of the messages {late_us / 1000:.1f} ms or more late",))
    schedule, duration = workload.schedule, workload.duration
    due = schedule.count(duration) - load.unsent if schedule and duration else 0
    if client_busy and not server_busy and load.verified < _KEPT_UP_SHARE * due:
        return ClientLimit(tuple(reasons))
    return ClientLimit()


def comparable(workload: Workload) -> bool:
    """Tell whether the calibration, a ping-pong of short messages, says anything of a workload."""
    short = 256
    return (
        workload.rate is None
        and workload.think is None
        and workload.reconnect_every is None
        and workload.pipeline == 1
        and workload.sizes.largest <= short
        and not workload.tls
    )
