"""The figures of a graded server under load, for those who want to compare themselves."""

from clients.content import WRONG
from clients.workload import Workload
from loadtest.check.trial import Session
from loadtest.load.round import Engine, measure
from loadtest.machine import pinning

_CONNECTIONS = 50
_SECONDS = 3.0


def figures(session: Session) -> dict[str, float]:
    """Put the server under load for a moment; nothing where an answer was wrong or none came.

    Raises:
        loadtest.check.submission.NotStarted: The server does not come up.
        loadtest.errors.LoadError: This machine cannot carry the load.
    """
    if session.submission is None or session.expectation.by_line:
        return {}
    server = session.start()
    try:
        workload = Workload(
            *session.address,
            connections=min(_CONNECTIONS, session.concurrency or _CONNECTIONS),
            duration=_SECONDS,
            warmup=0.5,
            timeout=session.timeout,
            seed=session.seed,
            handler=session.expectation.name,
        )
        found = measure(workload, pinning.choose("off"), server.pid, engine=Engine("epoll"))
    finally:
        session.end()
    if WRONG & found.load.errors.keys() or not found.load.verified:
        return {}
    figures_ = {"messages per second": round(found.throughput, 1)}
    if (cpu := found.cpu_us_per_message) is not None:
        figures_["CPU microseconds per message"] = round(cpu, 2)
    return figures_
