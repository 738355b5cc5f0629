"""Processes that do what must never hold up those that serve."""

import os
import select
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NoReturn

from echoserver.errors import BootError
from echoserver.lifecycle.state import in_main_thread
from echoserver.monitoring.log import Log

_SIGNALS = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGALRM,
    signal.SIGURG,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_STANDARD = {0, 1, 2}
_POLL_INTERVAL = 0.01  # seconds
_KILL_GRACE = 1.0  # seconds from a kill to the end
_START_TIMEOUT = 10.0  # seconds until it is up

# Seconds until a helper that has died is started again: twice as many each time, where it did not
# live for long.
_FIRST_RESTART_DELAY, _MAX_RESTART_DELAY = 0.5, 30.0
_MIN_UPTIME = 10.0  # seconds


Main = Callable[[Callable[[], None]], None]


class Helper:
    """A child that runs a function, and nothing else of what its parent was.

    Made while the parent has one thread: a lock that another one held at the fork would never be
    released in the child.

    It is up when this returns, or has ended already.

    Args:
        main: What it does; when that returns, the process ends. It calls its one argument once it
            is ready, and has given up what privileges it need not have.
        keep: Descriptors that it needs, besides the standard ones; all others it closes.

    Raises:
        BootError: The system has no process for it.
    """

    def __init__(self, main: Main, keep: Collection[int]) -> None:
        up, told = os.pipe2(os.O_CLOEXEC)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self.pid = os.fork()
            if not self.pid:
                self._live(main, keep, told)
        except OSError as error:
            os.close(up)
            os.close(told)
            raise BootError(
                f"cannot start a process for --metrics or --access-log: {error.strerror}"
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self.ended = False
        os.close(told)
        poll = select.poll()
        poll.register(up, select.POLLIN)
        if not poll.poll(_START_TIMEOUT * 1000):  # its end, or that it is up
            os.kill(self.pid, signal.SIGKILL)
        os.close(up)

    def look(self) -> bool:
        """Tell whether it has ended; it is collected then."""
        if not self.ended:
            try:
                self.ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
            except ChildProcessError:  # as process 1, somebody collects all there is
                self.ended = True
        return self.ended

    def tell(self, number: int) -> None:
        """Send it a signal, if it still lives."""
        if not self.look():
            os.kill(self.pid, number)

    def stop(self, patience: float) -> bool:
        """Wait for its end; kill it after so many seconds; tell whether it ended without that.

        One that waits for a disk that does not answer (state D of proc(5)) outlives even a kill,
        for a while; it is not waited for any longer.
        """
        deadline, killed = time.monotonic() + patience, False
        while not self.look():
            if time.monotonic() >= deadline:
                if killed:
                    break
                os.kill(self.pid, signal.SIGKILL)
                deadline, killed = time.monotonic() + _KILL_GRACE, True
            time.sleep(_POLL_INTERVAL)
        return not killed

    @staticmethod
    def _live(main: Main, keep: Collection[int], told: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:  # what they mean is for the parent to say
                signal.signal(number, signal.SIG_IGN)
            for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - numbers, no paths
                if fd not in _STANDARD and fd not in keep and fd != told:
                    with suppress(OSError):  # the one of that listing
                        os.close(fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            main(lambda: os.close(told))
            code = 0
        finally:
            os._exit(code)


class SupervisedHelper:
    """A helper that is started again when it has died.

    It is forked by the main thread of a process that may have others by then. So what it runs must
    take no lock that another thread of the server could have held at the fork.

    Args:
        name: What the log calls it.
        start: Starts it; called again for each restart.
        log: Where its deaths are told.

    Raises:
        BootError: The system has no process for it.
    """

    def __init__(self, name: str, start: Callable[[], Helper], log: Log) -> None:
        self._name, self._start, self._log = name, start, log
        self._helper = start()
        self._started = time.monotonic()
        self._delay = _FIRST_RESTART_DELAY
        self._restart_at: float | None = None

    def supervise(self) -> None:
        """Start it again if it has died, and its delay is over; called every second or so.

        Of a backend whose other threads run the main flow, nothing is started: the kernel would
        take the helper along when the thread ends that forked it (PR_SET_PDEATHSIG, prctl(2)).
        """
        if not in_main_thread():
            return
        now = time.monotonic()
        if self._restart_at is None:
            if self._helper.look():
                self._log.error("helper_died", what=self._name, helper_pid=self._helper.pid)
                lived = now - self._started
                self._delay = (
                    _FIRST_RESTART_DELAY
                    if lived >= _MIN_UPTIME
                    else min(self._delay * 2, _MAX_RESTART_DELAY)
                )
                self._restart_at = now + self._delay
        elif now >= self._restart_at:
            self.ensure_running()

    def ensure_running(self) -> None:
        """Start it now if it has died."""
        if not self._helper.look():
            return
        self._started = time.monotonic()
        try:
            self._helper = self._start()
        except BootError as error:
            self._delay = min(self._delay * 2, _MAX_RESTART_DELAY)
            self._restart_at = self._started + self._delay
            self._log.warning_each_second(
                "helper_not_started", what=self._name, reason=str(error), retry_in=self._delay
            )
        else:
            self._restart_at = None
            self._log.info("helper_started", what=self._name, helper_pid=self._helper.pid)

    def tell(self, number: int) -> None:
        """Send it a signal, if it lives."""
        self._helper.tell(number)

    def stop(self, patience: float) -> bool:
        """Wait for its end; kill it after so many seconds; tell whether it ended without that."""
        return self._helper.stop(patience)
