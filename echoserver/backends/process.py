"""A process per client (UNP 30.5, the classic concurrent server): fork after accept.

The parent accepts and forks; the child serves that one client and exits. Nothing is shared, so
nothing needs a lock, one client's crash is nobody else's, and Python computes on every core.

A connection costs a fork (about a millisecond, more for every module imported before) and the
pages that the child writes to. What the child did comes back through shared memory.
"""

import gc
import mmap
import os
import signal
import struct
from functools import partial

from echoserver.backends import Backend
from echoserver.connection import Connection
from echoserver.lifecycle import prepare_children
from echoserver.listener import Listener
from echoserver.service import Service

# What a child tells its parent: bytes in, out and discarded, and how it ended.
_REPORT = struct.Struct("QQQ16s")


class ProcessBackend(Backend):
    """Forks a process for every client."""

    summary = "a process per client (fork)"

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept in this process, serve each client in a child."""
        self._children: dict[int, tuple[Connection, int]] = {}
        self._reports = mmap.mmap(-1, _REPORT.size * service.limit)  # MAP_SHARED: children write it
        self._free_reports: list[int] = []
        self._used_reports = 0
        service.lifecycle.wake_on(signal.SIGCHLD)
        service.lifecycle.on_wake(self._reap)
        prepare_children()
        gc.freeze()  # or the first collection in a child would touch, and so copy, every page
        for connection in listener:
            report = self._take_report()
            parent = os.getpid()
            try:
                pid = os.fork()
            except OSError as error:  # the system has no process left
                self._free_reports.append(report)
                connection.refuse(error)
                continue
            if pid == 0:
                self._serve_child(parent, connection, report, listener, service)
            self._children[pid] = connection, report
            # The parent must not keep the client's socket, or the client never sees our FIN.
            connection.handed_over(
                wake=partial(os.kill, pid, signal.SIGTERM),
                cut=partial(os.kill, pid, signal.SIGTERM),
            )
        service.drain()
        self._kill_the_rest()

    def _take_report(self) -> int:
        """Return the number of a report that no living child has; there is one for every slot."""
        if self._free_reports:
            return self._free_reports.pop()
        self._used_reports += 1
        return self._used_reports - 1

    def _serve_child(
        self,
        parent: int,
        connection: Connection,
        report: int,
        listener: Listener,
        service: Service,
    ) -> None:
        """Be the child: serve, report, and leave without the parent's clean-up."""
        try:
            service.lifecycle.become_child(parent, connection.wake, connection.cut)
            listener.close()
            connection.serve()
            _REPORT.pack_into(
                self._reports,
                report * _REPORT.size,
                connection.bytes_in,
                connection.bytes_out,
                connection.bytes_discarded,
                connection.outcome.encode(),
            )
        finally:
            os._exit(0)

    def _reap(self) -> None:
        """Collect the children that have ended, and only our own."""
        while self._children:
            try:  # look first: a child that is not ours is someone else's to collect
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid not in self._children:
                for pid in list(self._children):
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        self._collect(pid)
                return
            os.waitpid(ended.si_pid, 0)
            self._collect(ended.si_pid)

    def _collect(self, pid: int) -> None:
        connection, report = self._children.pop(pid)
        place = slice(report * _REPORT.size, (report + 1) * _REPORT.size)
        received, sent, discarded, outcome = _REPORT.unpack(self._reports[place])
        self._reports[place] = bytes(_REPORT.size)
        self._free_reports.append(report)
        connection.bytes_in, connection.bytes_out = received, sent
        connection.bytes_discarded = discarded
        connection.outcome = connection.outcome or outcome.rstrip(b"\0").decode()
        connection.release()

    def _kill_the_rest(self) -> None:
        """End the children that even the deadline did not end."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)
            self._collect(pid)
