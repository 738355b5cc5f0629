"""The load client's own process, told by lines on its standard input what to do next.

It is a process apart so that its CPU time is the client's alone, and so that it can be confined
to CPUs of its own; a run may have several of them, with a part of the connections each. Line by
line: what to do, as JSON → connect, say how many; ``go NANOSECONDS`` → start then, say what each
second gave, and when it is over; ``close`` → finish, say the result. When the input ends, so does
the process. The signal `STOP` ends the time early; Ctrl-C, which reaches the whole group, is
blocked here (`loadtest.load.coordinator`): the process that started this one decides what it means.
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

_RARELY = 100_000  # objects between two looks for cycles, of which a load makes none


def main() -> None:
    """Run one workload, as standard input says."""
    told = json.loads(_next_line())
    workload = Workload(**told["workload"])
    try:
        load = ENGINES[told["engine"]](workload, range(*told["numbers"]), _say_second)
        connected = load.connect()
    except RuntimeError as error:
        said = f"cannot start {workload.connections} threads: {error}"
        _say({"failed": said, "threads": told["engine"] == "threads"})
        return
    signal.signal(STOP, lambda *_: load.stop())
    gc.freeze()
    gc.set_threshold(_RARELY)
    _say({"connected": connected})
    load.start(int(_next_line().split()[1]))
    load.wait()
    _say({"over": True})
    _next_line()
    result = load.finish()
    histograms = {"latency", "raw", "lag", "recovery"}  # of which three were said by the second
    found = {name: getattr(result, name) for name in result.__slots__ if name not in histograms}
    recovery = result.recovery.encode().decode("ascii")
    _say({"result": found, "recovery": recovery})


def _say_second(second: Second) -> None:
    encoded = {
        name: getattr(second, name).encode().decode("ascii") for name in ("latency", "raw", "lag")
    }
    facts = {"number": second.number, "seconds": second.seconds, "errors": second.errors}
    _say({"second": facts | encoded})


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        os._exit(1)  # threads may be waiting for a server; nobody waits for us
    return line


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
