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

_WAKE_TIMEOUT = 0.001  # seconds
_SLEEP_SLICE = 0.1  # seconds


class BlockingDriver:
    """The calling thread, which blocks in the system calls of one connection.

    The socket is in blocking mode, with SO_RCVTIMEO and SO_SNDTIMEO (inherited from the
    listener): Python's own ``settimeout`` would cost a ``poll`` before every read and write.
    """

    __slots__ = ("_flow", "_is_main_thread", "_sock", "_state", "_thread")

    def __init__(self, connection: Drivable, state: State) -> None:
        self._state = state
        self._sock = connection.sock
        self._thread = get_ident()
        # The main thread may be interrupted for other reasons, each of which restarts a wait.
        self._is_main_thread = in_main_thread()
        self._flow = connection.driven_by(self, blocking=True, swept=self._is_main_thread)
        if self._is_main_thread:
            state.attach(connection)

    def run(self) -> None:
        """Serve the connection to its end."""
        resume = self._flow.send
        try:
            expired: WaitResult = None
            while True:
                expired = self.carry_out(resume(expired))
        except (StopIteration, ValueError):  # the flow's end, or the main thread abandons it
            pass
        finally:
            if self._is_main_thread:
                self._state.detach()

    def carry_out(self, wait: Wait) -> WaitResult:
        """Carry out a wait that the next system call does not do itself."""
        if isinstance(wait, Sleep):
            self._sleep(wait.seconds)
        elif isinstance(wait, Readable) and wait.seconds is not None:
            # Not with SO_RCVTIMEO, which `wake` sets.
            poll = select.poll()
            poll.register(wait.fd, select.POLLIN)
            return not poll.poll(wait.seconds * 1000) or None
        return None

    def _sleep(self, seconds: float) -> None:
        """Sleep; in the main thread, no longer than the drain's deadline."""
        if not self._is_main_thread:
            time.sleep(seconds)
            return
        # A signal handler cannot end a sleep, which Python resumes (PEP 475).
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            if self._state.killed or self._state.overdue:
                return
            time.sleep(min(remaining, _SLEEP_SLICE))

    def wake(self) -> None:
        """Shorten the timeout, then interrupt the wait.

        The order matters. A ``recv`` that began before is interrupted and, retried by Python
        (PEP 475), takes the new timeout; one that begins later finds it. Neither call alone
        would do: a timeout is read when the wait begins, and an interrupted call is repeated.
        (If this thread itself calls this, it does so in a signal handler, whose signal has
        interrupted the wait already.)
        """
        with suppress(OSError):  # just closed
            set_timeout(self._sock, socket.SO_RCVTIMEO, _WAKE_TIMEOUT)
        if get_ident() != self._thread:
            pthread_kill(self._thread, WAKE_SIGNAL)

    def close(self) -> None:
        """Do nothing: this driver holds nothing for the socket."""
