"""A process per client (UNP 30.5, the classic concurrent server): fork after accept.

The parent accepts and forks; the child serves that one client and exits. Nothing is shared, so
nothing needs a lock, one client's crash is nobody else's, and Python computes on every core.

A connection costs a fork (about a millisecond, more for every module imported before) and the
pages that the child writes to. What the child did comes back through shared memory.
"""

import gc
import os
import signal
from functools import partial

from echoserver.backends import Backend
from echoserver.connection import Connection
from echoserver.forking import ParentalBond, Reports
from echoserver.listener import Listener
from echoserver.service import Service


class ProcessBackend(Backend):
    """Forks a process for every client."""

    summary = "a process per client (fork)"

    def serve(self, listener: Listener, service: Service) -> None:
        """Accept in this process, serve each client in a child."""
        self._children: dict[int, tuple[Connection, int]] = {}
        self._reports = Reports(service.limit)
        bond = ParentalBond()
        service.lifecycle.wake_on(signal.SIGCHLD)
        service.lifecycle.on_wake(self._reap)
        gc.freeze()  # or the first collection in a child would touch, and so copy, every page
        for connection in listener:
            report = self._reports.reserve()
            try:
                pid = os.fork()
            except OSError as error:  # the system has no process left
                self._reports.discard(report)
                connection.refuse(error)
                continue
            if pid == 0:
                try:
                    bond.tie()
                    service.lifecycle.become_child()
                    listener.close()
                    connection.converse()
                    self._reports.write(report, connection)
                finally:
                    os._exit(0)  # whatever clean-up there is belongs to the parent
            self._children[pid] = connection, report
            # This closes the parent's copy: while it is open, the client never sees our FIN.
            connection.handed_over(terminate=partial(os.kill, pid, signal.SIGTERM))
        service.drain()
        self._kill_the_rest()

    def _reap(self) -> None:
        """Collect the children that have ended, and only our own.

        Asking for each of them by its id would be a system call per child and death: millions
        when a few thousand end at once. So look at whoever ended (WNOWAIT), then collect that one.
        """
        while self._children:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid not in self._children:  # someone else's child hides the others
                for pid in list(self._children):
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        self._collect(pid)
                return
            os.waitpid(ended.si_pid, 0)
            self._collect(ended.si_pid)

    def _collect(self, pid: int) -> None:
        connection, report = self._children.pop(pid)
        self._reports.collect(report, connection)
        connection.release()

    def _kill_the_rest(self) -> None:
        """End the children that even the deadline did not end."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)
            self._collect(pid)
