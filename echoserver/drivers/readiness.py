"""A loop that waits until descriptors are ready (epoll(7)), and calls back."""

import select
from collections.abc import Callable

from echoserver.drivers.callbacks import MAX_EVENTS, Timers


class ReadinessLoop(Timers):
    """A loop that calls back when a descriptor is ready, or a timer is due.

    One callback for a descriptor is enough: a flow waits for one thing at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._should_stop = False

    def run(self) -> None:
        """Wait, call, and wait again, until `stop`."""
        callbacks, poll = self._callbacks, self._epoll.poll
        while True:
            idle = self.run_due()  # seconds until the next timer
            if self._should_stop:
                return
            for fd, _ in poll(idle, MAX_EVENTS):
                # An earlier callback of this turn may have removed it.
                if (callback := callbacks.get(fd)) is not None:
                    callback()

    def stop(self) -> None:
        """End `run` before it waits again."""
        self._should_stop = True

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is readable, or broken."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is writable, or broken."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLOUT)

    def remove_reader(self, fd: int) -> None:
        """Stop watching `fd`. A socket at its end stays readable, and would make the loop spin."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    remove_writer = remove_reader
