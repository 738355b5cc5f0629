"""Running flows in the most direct way: the calling thread blocks in the kernel."""

import select
import socket
import time
from _thread import get_ident
from contextlib import suppress
from signal import pthread_kill

from echoserver.flow import Drivable, Readable, Sleep, Wait, WaitResult
from echoserver.lifecycle.state import WAKE_SIGNAL, State, in_main_thread
from echoserver.system.sockets import set_timeout

_WAKE_TIMEOUT = 0.001
_SLEEP_SLICE = 0.1  # seconds


class BlockedThread:
    """The calling thread, which blocks in the system calls of one connection.

    The socket is in blocking mode, with SO_RCVTIMEO and SO_SNDTIMEO (inherited from the
    listener): Python's own ``settimeout`` would cost a ``poll`` before every read and write.
    """

    __slots__ = ("_flow", "_in_main", "_sock", "_state", "_thread")

    def __init__(self, connection: Drivable, state: State) -> None:
        self._state = state
        self._sock = connection.sock
        self._thread = get_ident()
        # The main thread may be interrupted for other reasons, each of which restarts a wait.
        self._in_main = in_main_thread()
        self._flow = connection.driven_by(self, blocking=True, swept=self._in_main)
        if self._in_main:
            state.attach(connection)

    def run(self) -> None:
        """Serve the connection to its end."""
        resume = self._flow.send
        try:
            expired: WaitResult = None
            while True:
                expired = self.carry_out(resume(expired))
        except (StopIteration, ValueError):  # its end; or the main thread is just abandoning it
            pass
        finally:
            if self._in_main:
                self._state.detach()

    def carry_out(self, wait: Wait) -> WaitResult:
        """Wait, where the system call that follows does not."""
        if isinstance(wait, Sleep):
            self._sleep(wait.seconds)
        elif isinstance(wait, Readable) and wait.seconds is not None:
            # Not by SO_RCVTIMEO, which `wake` sets.
            poll = select.poll()
            poll.register(wait.fd, select.POLLIN)
            return not poll.poll(wait.seconds * 1000) or None
        return None

    def _sleep(self, seconds: float) -> None:
        """Let the time pass; in the main thread, no longer than the server has."""
        if not self._in_main:
            time.sleep(seconds)
            return
        # A signal's handler cannot end a sleep, which Python resumes (PEP 475).
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._state.killed or self._state.overdue:
                return
            time.sleep(min(left, _SLEEP_SLICE))

    def wake(self) -> None:
        """Shorten the timeout, then interrupt the wait.

        The order matters. A ``recv`` that began before is interrupted and, retried by Python
        (PEP 475), takes the new timeout; one that begins later finds it. Neither call alone
        would do: a timeout is read when the wait begins, and an interrupted call is repeated.
        (Called by this very thread, it is in a signal's handler: that is the interruption.)
        """
        with suppress(OSError):  # just closed
            set_timeout(self._sock, socket.SO_RCVTIMEO, _WAKE_TIMEOUT)
        if get_ident() != self._thread:
            pthread_kill(self._thread, WAKE_SIGNAL)

    def close(self) -> None:
        """Do nothing: this driver holds nothing for the socket."""
