"""The load client's own process, told by lines on its standard input what to do next.

It is a process apart so that its CPU time is the client's alone, and so that it can be confined
to CPUs of its own. Line by line: a workload as JSON → connect, say how many; ``go`` → start, say
when it is over; ``close`` → finish, say the result. When the input ends, so does the process.
"""

import json
import os
import signal
import sys
from dataclasses import fields
from typing import Any

from clients.epoll import EpollLoad
from clients.load import Load, Workload
from clients.threads import ThreadLoad

ENGINES: dict[str, type[Load]] = {"threads": ThreadLoad, "epoll": EpollLoad}


def main() -> None:
    """Serve one workload."""
    # Ctrl-C reaches the whole group; whoever started us decides, and ends our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = json.loads(_next_line())
    load = ENGINES[told.pop("engine")](Workload(**told))
    try:
        connected = load.connect()
    except RuntimeError as error:
        _say({"failed": f"cannot start {load.workload.connections} threads: {error}"})
        return
    _say({"connected": connected})
    _next_line()
    load.start()
    load.wait()
    _say({"over": True})
    _next_line()
    result = load.finish()
    # asdict() would rebuild each Counter from pairs, and so count the pairs.
    _say({field.name: getattr(result, field.name) for field in fields(result)})


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        os._exit(1)  # threads may be waiting for a server; nobody waits for us
    return line


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
