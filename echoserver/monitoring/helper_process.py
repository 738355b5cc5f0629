"""Helper processes, for work that must never hold up the processes that serve."""

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
_KILL_GRACE = 1.0  # seconds that a killed helper gets to end
_START_TIMEOUT = 10.0  # seconds

# Seconds until a helper that has died is started again. They double each time that it did not run
# for long.
_FIRST_RESTART_DELAY, _MAX_RESTART_DELAY = 0.5, 30.0
_MIN_UPTIME = 10.0  # seconds


Main = Callable[[Callable[[], None]], None]


class Helper:
    """A forked child that runs one function, and drops everything else of its parent.

    Fork it while the parent has one thread: a lock that another thread held at the fork would never
    be released in the child. The constructor returns once the helper has started or exited.

    Args:
        main: What the helper runs; when that returns, the process ends. It calls its one argument
            once it is ready, and has dropped the privileges that it does not need.
        keep: Descriptors that the helper needs, besides the standard ones; it closes all others.

    Raises:
        BootError: The system cannot start another process.
    """

    def __init__(self, main: Main, keep: Collection[int]) -> None:
        ready, ready_sink = os.pipe2(os.O_CLOEXEC)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self.pid = os.fork()
            if not self.pid:
                self._run(main, keep, ready_sink)
        except OSError as error:
            os.close(ready)
            os.close(ready_sink)
            raise BootError(
                f"cannot start a process for --metrics or --access-log: {error.strerror}"
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._ended = False
        os.close(ready_sink)
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        if not poll.poll(_START_TIMEOUT * 1000):  # it is neither ready nor has it ended
            os.kill(self.pid, signal.SIGKILL)
        os.close(ready)

    def has_ended(self) -> bool:
        """Tell whether the helper has ended, and reap it if so."""
        if not self._ended:
            try:
                self._ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
            except ChildProcessError:  # in process 1, the orphan reaper may have been first
                self._ended = True
        return self._ended

    def send_signal(self, number: int) -> None:
        """Send the helper a signal, if it has not ended."""
        if not self.has_ended():
            os.kill(self.pid, number)

    def stop(self, timeout: float) -> bool:
        """Wait for the helper to end, and kill it after `timeout` seconds.

        A helper that waits for a disk that does not answer (state D of proc(5)) survives even a
        kill for a while; this does not wait for its end any longer.

        Returns:
            Whether it ended without being killed.
        """
        deadline, killed = time.monotonic() + timeout, False
        while not self.has_ended():
            if time.monotonic() >= deadline:
                if killed:
                    break
                os.kill(self.pid, signal.SIGKILL)
                deadline, killed = time.monotonic() + _KILL_GRACE, True
            time.sleep(_POLL_INTERVAL)
        return not killed

    @staticmethod
    def _run(main: Main, keep: Collection[int], ready_sink: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:  # the parent decides what they mean
                signal.signal(number, signal.SIG_IGN)
            for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - numbers, not paths
                if fd not in _STANDARD and fd not in keep and fd != ready_sink:
                    with suppress(OSError):  # the descriptor that listed the directory
                        os.close(fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            main(lambda: os.close(ready_sink))
            code = 0
        finally:
            os._exit(code)


class SupervisedHelper:
    """A helper that is started again when it has died.

    The main thread forks it, in a process that may have other threads by then. So what it runs must
    not take a lock that another thread of the server could have held at the fork.

    Args:
        name: The helper's name in the log.
        start: Starts the helper; called again for each restart.
        log: Where its deaths are logged.

    Raises:
        BootError: The system cannot start another process.
    """

    def __init__(self, name: str, start: Callable[[], Helper], log: Log) -> None:
        self._name, self._start, self._log = name, start, log
        self._helper = start()
        self._start_time = time.monotonic()
        self._delay = _FIRST_RESTART_DELAY
        self._restart_at: float | None = None

    def supervise(self) -> None:
        """Restart the helper if it has died and its delay is over; called every second or so.

        Where a backend runs the main flow in another thread, the helper is not restarted: the
        kernel would kill it when the thread that forked it ends (PR_SET_PDEATHSIG, prctl(2)).
        """
        if not in_main_thread():
            return
        now = time.monotonic()
        if self._restart_at is None:
            if self._helper.has_ended():
                self._log.error("helper_died", what=self._name, helper_pid=self._helper.pid)
                uptime = now - self._start_time
                self._delay = (
                    _FIRST_RESTART_DELAY
                    if uptime >= _MIN_UPTIME
                    else min(self._delay * 2, _MAX_RESTART_DELAY)
                )
                self._restart_at = now + self._delay
        elif now >= self._restart_at:
            self.ensure_running()

    def ensure_running(self) -> None:
        """Restart the helper now if it has died."""
        if not self._helper.has_ended():
            return
        self._start_time = time.monotonic()
        try:
            self._helper = self._start()
        except BootError as error:
            self._delay = min(self._delay * 2, _MAX_RESTART_DELAY)
            self._restart_at = self._start_time + self._delay
            self._log.warning_each_second(
                "helper_not_started", what=self._name, reason=str(error), retry_in=self._delay
            )
        else:
            self._restart_at = None
            self._log.info("helper_started", what=self._name, helper_pid=self._helper.pid)

    def send_signal(self, number: int) -> None:
        """Send the helper a signal, if it has not ended."""
        self._helper.send_signal(number)

    def stop(self, timeout: float) -> bool:
        """Wait for the helper to end, and kill it after `timeout` seconds; see `Helper.stop`."""
        return self._helper.stop(timeout)
