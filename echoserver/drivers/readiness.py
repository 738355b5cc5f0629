"""A loop that waits until descriptors are ready (epoll(7)), and calls back."""

import select
from collections.abc import Callable

from echoserver.drivers.callbacks import MOST_EVENTS, Timers


class ReadinessLoop(Timers):
    """Calls back when a descriptor is ready, or a timer due.

    One callback for a descriptor is enough: a flow waits for one thing at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._stopped = False

    def run(self) -> None:
        """Wait, call, and wait again, until `stop`."""
        callbacks, poll = self._callbacks, self._epoll.poll
        while True:
            idle = self.run_due()  # seconds until the next timer
            if self._stopped:
                return
            for fd, _ in poll(idle, MOST_EVENTS):
                # An earlier callback of this turn may have removed it.
                if (callback := callbacks.get(fd)) is not None:
                    callback()

    def stop(self) -> None:
        """End `run`, before it waits again."""
        self._stopped = True

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call whenever `fd` is readable, or broken."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """Call whenever `fd` is writable, or broken."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLOUT)

    def remove_reader(self, fd: int) -> None:
        """Call no more; left registered, a peer that has ended would stay readable, and spin."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    remove_writer = remove_reader
