"""The figures of a graded server under load, for a leaderboard."""

from clients.content import WRONG
from clients.workload import Workload
from loadtest.check.trial import Session
from loadtest.load.round import Engine, measure
from loadtest.machine import pinning

_CONNECTIONS = 50
_SECONDS = 3.0


def figures(session: Session) -> dict[str, float]:
    """Put the server under load for a moment, and return its figures.

    There are none if an answer was wrong, or if none came.

    Raises:
        loadtest.check.submission.NotStarted: The server does not come up.
        loadtest.errors.LoadError: This machine cannot carry the load.
    """
    if session.submission is None or session.expectation.by_line:
        return {}
    server = session.start()
    try:
        workload = Workload(
            *session.address[:2],
            connections=min(_CONNECTIONS, session.concurrency or _CONNECTIONS),
            duration=_SECONDS,
            warmup=0.5,
            timeout=session.timeout,
            seed=session.seed,
            handler=session.expectation.name,
        )
        round_ = measure(workload, pinning.choose("off"), server.pid, engine=Engine("epoll"))
    finally:
        session.end()
    if WRONG & round_.load.errors.keys() or not round_.load.verified:
        return {}
    figures_ = {"messages per second": round(round_.throughput, 1)}
    if (cpu := round_.cpu_us_per_message) is not None:
        figures_["CPU microseconds per message"] = round(cpu, 2)
    return figures_
