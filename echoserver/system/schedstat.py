"""How long a thread has run and has waited for a CPU: /proc/PID/task/TID/schedstat.

The kernel's Documentation/scheduler/sched-stats.rst describes the file.
"""

from pathlib import Path
from typing import NamedTuple


class ThreadTime(NamedTuple):
    """The run time and waiting time of one thread, in nanoseconds."""

    ran: int = 0
    waited: int = 0
    """For a CPU that another thread had."""


def thread_time(task: Path) -> ThreadTime:
    """Return the times of the thread whose folder in /proc is `task`.

    Raises:
        OSError: The thread is gone, or the kernel was built without these figures.
        ValueError: The kernel writes something else.
    """
    times = (task / "schedstat").read_bytes().split()
    return ThreadTime(*map(int, times[:2]))
