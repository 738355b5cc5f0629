"""Running flows in greenlets, which park themselves with gevent's loop (libev)."""

from typing import Any

import gevent
import gevent.hub
import gevent.socket
from greenlet import getcurrent

from echoserver.flow import Flow, Readable, Wait, WaitResult, Writable

_READ = 1  # libev's EV_READ


class Green:
    """Runs one flow in the greenlet that made it.

    A flow mostly waits for input from the same socket again. So its read watcher is started once
    and stays: gevent's own sockets start and stop one for every wait. Input that comes while the
    greenlet is busy would make the watcher fire in every turn of the loop. So the first time that
    it fires while nothing waits, it is stopped, and the next wait starts it again.
    """

    __slots__ = ("_greenlet", "_hub", "_is_waiting", "_wait", "_watcher", "_watching")

    def __init__(self) -> None:
        self._greenlet = getcurrent()
        self._hub = gevent.hub.get_hub()
        self._wait: Wait | None = None
        self._is_waiting = False
        self._watcher: Any = None
        self._watching = False

    def run(self, flow: Flow) -> None:
        """Run a flow to its end."""
        resume, park = flow.send, self._hub.switch
        expired: WaitResult = None
        while True:
            try:
                wait = resume(expired)
            except StopIteration:
                return
            if wait is self._wait:  # the same object as before: input, without a time limit
                if not self._watching:
                    self._watch()
                self._is_waiting = True
                expired = park() or None
                self._is_waiting = False
            else:
                expired = self._carry_out(wait)

    def wake(self) -> None:
        """End an open-ended wait for input, in the loop's next turn."""
        if self._is_waiting and self._wait is not None and self._wait.seconds is None:
            self._expire_wait()

    def close(self) -> None:
        """Give the watcher back to the loop."""
        self._pause()
        if self._watcher is not None:
            self._watcher.close()

    def _carry_out(self, wait: Wait) -> WaitResult:
        """Carry out a wait that is not the same as the previous one."""
        if not isinstance(wait, Readable):
            self._pause()
            self._wait = None
            if isinstance(wait, Writable):
                return self._await_room(wait)
            gevent.sleep(wait.seconds)
            return None
        if self._watcher is None:
            self._watcher = self._hub.loop.io(wait.fd, _READ)
        self._wait = wait
        self._watch()
        timer = None
        if wait.seconds is not None:
            timer = self._hub.loop.timer(wait.seconds)
            timer.start(self._expire_wait)
        self._is_waiting = True
        expired: WaitResult = self._hub.switch() or None
        self._is_waiting = False
        if timer is not None:
            timer.close()
        return expired

    @staticmethod
    def _await_room(wait: Writable) -> WaitResult:
        try:
            gevent.socket.wait_write(wait.fd, wait.seconds, TimeoutError())
        except TimeoutError:
            return True
        return None

    def _unpark(self) -> None:
        """Resume the greenlet; if it is not waiting, stop the watcher. Runs in the hub."""
        if self._is_waiting:
            self._greenlet.switch()
        else:
            self._pause()

    def _expire_wait(self) -> None:
        """Resume the greenlet in the loop's next turn, if it is still in the same wait."""
        wait = self._wait

        def unpark() -> None:
            if self._is_waiting and self._wait is wait:
                self._greenlet.switch(True)

        self._hub.loop.run_callback(unpark)

    def _watch(self) -> None:
        if not self._watching:
            self._watcher.start(self._unpark)
            self._watching = True

    def _pause(self) -> None:
        if self._watching:
            self._watcher.stop()
            self._watching = False
