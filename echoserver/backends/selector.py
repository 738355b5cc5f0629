"""One thread and a readiness loop (UNP 6.8: TCP echo server, revisited, with select).

The kernel tells which sockets are ready, here by epoll(7); each is read and answered at once, and
nobody waits for anybody. What a thread would keep on its stack, a suspended flow keeps: where it
was, and what it waits for.

A connection costs its flow and an entry in the kernel's table, about 2 KiB; a message costs no
switch of threads. But there is one thread: whatever computes, stops everyone.
"""

import select
from collections.abc import Callable

from echoserver.admission.listener import Listener
from echoserver.backends import Backend
from echoserver.drivers.callbacks import MOST_EVENTS, Task, Timers, start
from echoserver.service import Service


class SelectorBackend(Backend):
    """Runs every flow on one readiness loop."""

    summary = "one thread, a readiness loop (epoll)"
    cost = "about 2 KiB"

    def serve(self, listener: Listener, service: Service) -> None:  # noqa: ARG002 - the flow drains it
        """Accept and serve on the loop."""
        loop = ReadinessLoop()
        main = listener.flow(lambda connection: start(loop, connection))
        Task(loop).run(main, done=loop.stop)
        loop.run()


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
