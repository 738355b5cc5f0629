"""Clients that were in the kernel's queue, or without a PROXY header yet, when the drain began."""

import time
from collections.abc import Iterator

from echoserver.admission.acceptor import AcceptedClient, Acceptor
from echoserver.admission.gate import Gate
from echoserver.admission.listening_sockets import ListeningSockets
from echoserver.conversation.connection import Connection
from echoserver.flow import Readable
from echoserver.service import Service
from echoserver.system.sockets import reset_on_close

_RESET_GRACE = 0.5  # seconds in which clients without a slot are reset one by one


class LastArrivals:
    """Admits those clients, and counts the ones that cannot be served."""

    def __init__(
        self, sockets: ListeningSockets, acceptor: Acceptor, gate: Gate, service: Service
    ) -> None:
        self._sockets, self._acceptor, self._gate = sockets, acceptor, gate
        self._service, self._lifecycle = service, service.lifecycle

    def steps(self) -> Iterator[Connection | Readable]:
        """Yield a connection for each of them that can be served, and the waits in between."""
        lifecycle = self._lifecycle
        self._sockets.remove_files()
        yield from self._admit_queued()
        had_pending_headers = bool(self._gate.pending_headers)
        while self._gate.pending_headers and not lifecycle.killed:
            deadline = min(lifecycle.stream_deadline, self._gate.pending_headers.next_deadline)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            yield lifecycle.next_wait(remaining)
            ready = lifecycle.dispatch_ready()
            self._gate.lingering_close.close_finished(ready)
            yield from self._gate.admit_ready(ready)
        if had_pending_headers and not self._has_successor:
            yield from self._admit_queued()
        service = self._service
        for sock in self._gate.pending_headers.take_all():
            service.slots.give()
            service.totals.unserved += 1
            reset_on_close(sock)
            sock.close()
        if service.slots.fd is None and not self._has_successor:  # no other process accepts them
            service.totals.unserved += self._sockets.queue()[0]

    @property
    def _has_successor(self) -> bool:
        """Whether another process accepts from these queues, or will."""
        return self._lifecycle.retiring or self._sockets.from_service_manager

    def _admit_queued(self) -> Iterator[Connection | Readable]:
        """Admit the clients that are in the kernel's queue.

        Clients without a free slot, or for which the time is over, are reset and counted. If
        another process takes over, now or when a service manager starts one, they are left to it.
        """
        service, lifecycle = self._service, self._lifecycle
        while not lifecycle.killed:
            in_time = time.monotonic() < lifecycle.stream_deadline
            # Checked before accepting, because connections may end meanwhile.
            could_free_descriptors = service.open > 0
            client, has_slot = self._accept_late(in_time=in_time)
            if client is None:
                lacks_descriptors = self._acceptor.pause_end and not self._has_successor
                if not (lacks_descriptors and in_time and could_free_descriptors):
                    return
                yield from self._await_descriptors()
            elif has_slot:
                connection = self._gate.receive(*client)
                if connection is not None:
                    yield connection
                lifecycle.run_hooks()
            else:
                service.totals.unserved += 1
                reset_on_close(client[0])
                client[0].close()
                if time.monotonic() > lifecycle.stream_deadline + _RESET_GRACE:
                    # Clients come faster than they can be reset. Closing the listener resets them.
                    return

    def _accept_late(self, *, in_time: bool) -> tuple[AcceptedClient | None, bool]:
        """Accept a client during the drain, and tell whether a slot was taken for it."""
        slots = self._service.slots
        if self._gate.rejects and not self._has_successor:  # in this order, as in `_accept_one`
            client = self._acceptor.accept()
            return client, client is not None and in_time and slots.take()
        has_slot = in_time and slots.take()
        client = None
        if has_slot or not self._has_successor:
            client = self._acceptor.accept()
        if has_slot and client is None:
            slots.give()
        return client, has_slot

    def _await_descriptors(self) -> Iterator[Readable]:
        """Let open connections end, which frees descriptors for the clients in the queue."""
        service, lifecycle = self._service, self._lifecycle
        service.wake_on_release = True
        service.notify_of_drain()
        deadline = min(self._acceptor.pause_end, lifecycle.stream_deadline)
        yield lifecycle.next_wait(max(0.0, deadline - time.monotonic()))
        self._gate.lingering_close.close_finished(lifecycle.dispatch_ready())
