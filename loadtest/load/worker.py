"""A process of the load client, which takes its orders as lines on its standard input.

It is a separate process so that its CPU time is the client's alone, and so that it can be confined
to CPUs of its own; a run may have several of them, with a part of the connections each. Line by
line: the workload, as JSON → connect, report how many did; ``go NANOSECONDS`` → start at that
time, report each second, and the end; ``close`` → finish, report the result. When the input ends,
so does the process. The signal `STOP` ends the time early; Ctrl-C, which reaches the whole group,
is blocked here (`loadtest.load.coordinator`): the process that started this one decides what it
means.
"""

import gc
import json
import os
import signal
import sys
from typing import Any

from clients.epoll import EpollLoad
from clients.load import Load
from clients.recording import Second
from clients.threads import ThreadLoad
from clients.workload import Workload

STOP = signal.SIGUSR1

ENGINES: dict[str, type[Load]] = {"threads": ThreadLoad, "epoll": EpollLoad}

_GC_THRESHOLD = 100_000  # objects between two searches for cycles, of which a load makes none


def main() -> None:
    """Run the workload that standard input describes."""
    settings = json.loads(_next_line())
    workload = Workload(**settings["workload"])
    try:
        load = ENGINES[settings["engine"]](workload, range(*settings["numbers"]), _send_second)
        connected = load.connect()
    except RuntimeError as error:
        reason = f"cannot start {workload.connections} threads: {error}"
        _send({"failed": reason, "threads": settings["engine"] == "threads"})
        return
    signal.signal(STOP, lambda *_: load.stop())
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    _send({"connected": connected})
    load.start(int(_next_line().split()[1]))
    load.wait()
    _send({"over": True})
    _next_line()
    result = load.finish()
    histograms = {"latency", "raw", "lag", "recovery"}  # three of them were sent each second
    fields = {name: getattr(result, name) for name in result.__slots__ if name not in histograms}
    recovery = result.recovery.encode().decode("ascii")
    _send({"result": fields, "recovery": recovery})


def _send_second(second: Second) -> None:
    encoded = {
        name: getattr(second, name).encode().decode("ascii") for name in ("latency", "raw", "lag")
    }
    facts = {"number": second.number, "seconds": second.seconds, "errors": second.errors}
    _send({"second": facts | encoded})


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        os._exit(1)  # at once: threads may still be waiting for a server
    return line


def _send(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
