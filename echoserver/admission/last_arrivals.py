"""Clients that were in the kernel's queue, or without a PROXY header yet, when the drain began."""

import time
from collections.abc import Iterator

from echoserver.admission.acceptor import Accepted, Acceptor
from echoserver.admission.gate import Gate
from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.conversation.connection import Connection
from echoserver.flow import Readable
from echoserver.service import Service
from echoserver.system.sockets import abort

_LATEST_RESET = 0.5  # seconds in which clients are reset by hand that no slot is free for


class LastArrivals:
    """Takes those clients in, and counts those that cannot be served."""

    def __init__(
        self, sockets: ListeningSockets, acceptor: Acceptor, gate: Gate, service: Service
    ) -> None:
        self._sockets, self._acceptor, self._gate = sockets, acceptor, gate
        self._service, self._lifecycle = service, service.lifecycle

    def steps(self) -> Iterator[Connection | Readable]:
        """Take in who was in the kernel's queue, or without a header yet, when the drain began."""
        lifecycle = self._lifecycle
        self._sockets.remove_files()
        yield from self._last_in_queue()
        late = bool(self._gate.awaited)
        while self._gate.awaited and not lifecycle.killed:
            until = min(lifecycle.stream_deadline, self._gate.awaited.next_deadline)
            left = until - time.monotonic()
            if left <= 0:
                break
            yield lifecycle.next_wait(left)
            ready = lifecycle.dispatch_ready()
            self._gate.lingering.look_at(ready)
            yield from self._gate.welcome(ready)
        if late and not self._succeeded:
            yield from self._last_in_queue()
        service = self._service
        for sock in self._gate.awaited.empty():
            service.slots.give()
            service.totals.unserved += 1
            abort(sock)
            sock.close()
        if service.slots.fd is None and not self._succeeded:  # nobody else accepts them
            service.totals.unserved += self._sockets.queue()[0]

    @property
    def _succeeded(self) -> bool:
        """Another process accepts from these queues, or will."""
        return self._lifecycle.retiring or self._sockets.handed_over

    def _last_in_queue(self) -> Iterator[Connection | Readable]:
        """Take in who was in the kernel's queue.

        Clients without a free slot, or without time, are reset and counted; where another process
        takes over, now or when a service manager starts one, they are its clients.
        """
        service, lifecycle = self._service, self._lifecycle
        while not lifecycle.killed:
            in_time = time.monotonic() < lifecycle.stream_deadline
            give_back = service.open > 0  # before accepting: they may end meanwhile
            accepted, room = self._accept_late(in_time=in_time)
            if accepted is None:
                exhausted = self._acceptor.pause_ends and not self._succeeded
                if not (exhausted and in_time and give_back):
                    return
                yield from self._await_descriptors()
            elif room:
                connection = self._gate.receive(*accepted)
                if connection is not None:
                    yield connection
                lifecycle.run_hooks()
            else:
                service.totals.unserved += 1
                abort(accepted[0])
                accepted[0].close()
                if time.monotonic() > lifecycle.stream_deadline + _LATEST_RESET:
                    return  # they come faster than they can be turned away: the close does it

    def _accept_late(self, *, in_time: bool) -> tuple[Accepted | None, bool]:
        """Accept somebody during the drain, and tell whether there is a slot, which is taken."""
        slots = self._service.slots
        if self._gate.rejecting and not self._succeeded:  # in this order, as in `_accept_one`
            accepted = self._acceptor.accept()
            return accepted, accepted is not None and in_time and slots.take()
        room = in_time and slots.take()
        accepted = None
        if room or not self._succeeded:
            accepted = self._acceptor.accept()
        if room and accepted is None:
            slots.give()
        return accepted, room

    def _await_descriptors(self) -> Iterator[Readable]:
        """Let those who are served end, which gives descriptors back for those in the queue."""
        service, lifecycle = self._service, self._lifecycle
        service.wake_on_release = True
        service.tell_to_end()
        until = min(self._acceptor.pause_ends, lifecycle.stream_deadline)
        yield lifecycle.next_wait(max(0.0, until - time.monotonic()))
        self._gate.lingering.look_at(lifecycle.dispatch_ready())
