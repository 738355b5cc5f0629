"""Threads that serve clients: what each costs, and how they share the GIL."""

import sys
import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from echoserver.errors import BootError

# Bytes of address space, not memory: the default of 8 MiB times thousands of threads would be
# refused.
STACK_SIZE = 512 * 1024

# Threads that wait for the GIL do not just sleep: each wakes once in every switch interval to
# request it, and contends for its lock. When a thousand clients leave at the same time, that is
# most of the work, so the interval grows with the number of threads that could be waiting.
_MAX_WAKEUPS = 50_000  # a second, of all threads: this keeps Python's 5 ms for up to 250 threads
_MAX_SWITCH_INTERVAL = 0.1  # seconds that a thread may compute while others wait

Start = Callable[[Callable[[], object]], None]
"""Starts a thread that calls a function, which never raises.

Raises:
    RuntimeError: The system has no thread left.
"""


@contextmanager
def many_threads(running: Callable[[], int]) -> Iterator[Start]:
    """Yield a function that starts threads, of which there may be thousands.

    It starts them directly, because a `threading.Thread` takes 2.5 KiB more, and its start waits
    until the thread runs.

    Args:
        running: Returns the number of threads that run.
    """
    usual_size = threading.stack_size(STACK_SIZE)
    usual_interval = sys.getswitchinterval()

    def start(call: Callable[[], object]) -> None:
        interval = min(running() / _MAX_WAKEUPS, _MAX_SWITCH_INTERVAL)
        sys.setswitchinterval(max(usual_interval, interval))
        start_new_thread(call, ())

    try:
        yield start
    finally:
        sys.setswitchinterval(usual_interval)
        threading.stack_size(usual_size)


def start_pool(count: int, work: Callable[[], None], source: str) -> None:
    """Start all threads of a pool.

    Args:
        count: The number of threads.
        work: The function that each of them calls.
        source: Where `count` was read from, for the error message.

    Raises:
        BootError: The system cannot start that many threads.
    """
    threading.stack_size(STACK_SIZE)
    for number in range(count):
        try:
            threading.Thread(target=work, daemon=True).start()
        except RuntimeError:
            raise BootError(
                f"{source}: the system gave {number} threads of {count}; choose a smaller pool"
            ) from None
