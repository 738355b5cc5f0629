"""The process of the fork server: its start, its end, and the socket between it and the server."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from echoserver.errors import BootError
from echoserver.forkserver.messages import MAX_MESSAGE_SIZE, MESSAGE, Kind
from echoserver.lifecycle.state import State

_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from echoserver.forkserver.program import main; main(*map(int, sys.argv[2:]))"
)
_HOME = str(Path(__file__).resolve().parents[2])
_FLAGS = ["-O"] * sys.flags.optimize + ["-B"] * sys.flags.dont_write_bytecode
_SEND_BUFFER_SIZE = 8 * 1024  # bytes
_SEND_TIMEOUT = 5.0  # seconds that it may take no message
_POLL_INTERVAL = 0.1  # seconds between two checks for an abort
_FINAL_MESSAGE_TIMEOUT = 1.0  # seconds to wait for each of its last messages


class ForkServerProcess:
    """A fork server that runs, as a child of this process.

    Args:
        report_file: The descriptor of the memory in which its children report.
        lifecycle: Tells when this server is to leave at once.

    Raises:
        BootError: It cannot be started.
    """

    def __init__(self, report_file: int, lifecycle: State) -> None:
        self._lifecycle = lifecycle
        self.hangs = False
        """It answers nothing any more, and is to be killed."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Full when some twenty connections wait for their fork, so that the server accepts no
        # faster than children are forked.
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_SIZE)
        lifeline, self._lifeline = os.pipe2(os.O_CLOEXEC)
        descriptors = [theirs.fileno(), lifeline, report_file]
        arguments = [_HOME, *map(str, descriptors), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                # -S: the hooks of site must not add to its memory.
                [sys.executable, *_FLAGS, "-P", "-s", "-S", "-c", _PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                process_group=0,
            )
        except OSError as error:
            self.control.close()
            os.close(self._lifeline)
            raise BootError(f"cannot start the fork server: {error.strerror}") from None
        finally:
            theirs.close()
            os.close(lifeline)
        self.pidfd = os.pidfd_open(self._process.pid)

    def send(self, kind: Kind, number: int, figure: int = 0, descriptor: int | None = None) -> None:
        """Send a message, once there is room for it.

        Raises:
            OSError: The fork server has died, or hangs.
        """
        message = [MESSAGE.pack(kind, number, figure)]
        rights = []
        if descriptor is not None:
            data = descriptor.to_bytes(4, sys.byteorder)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)]
        deadline = time.monotonic() + _SEND_TIMEOUT
        while not self.hangs:
            try:
                self.control.sendmsg(message, rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self.hangs = self._lifecycle.killed or time.monotonic() > deadline
                poll = select.poll()
                poll.register(self.control, select.POLLOUT)
                poll.poll(_POLL_INTERVAL * 1000)
            else:
                return
        self.kill()
        raise TimeoutError("the fork server does not answer")

    def ping(self) -> None:
        """Ask whether it lives; one that takes no message leaves the question unanswered."""
        with suppress(OSError):
            self.control.send(MESSAGE.pack(Kind.PING, 0, 0), socket.MSG_DONTWAIT)

    def await_message(self) -> bytes:
        """Wait for its next message, for as long as it lives; empty: it has ended.

        Raises:
            OSError: There is none, because this server is to leave at once, or the socket broke.
        """
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        while not poll.poll(_POLL_INTERVAL * 1000) and not self._lifecycle.killed:
            pass
        return self.control.recv(MAX_MESSAGE_SIZE, socket.MSG_DONTWAIT)

    def messages(self) -> Iterator[bytes]:
        """Yield the messages that have arrived."""
        with suppress(OSError):
            while message := self.control.recv(MAX_MESSAGE_SIZE, socket.MSG_DONTWAIT):
                yield message

    def final_messages(self) -> Iterator[bytes]:
        """Have it end its remaining children, and yield what it reports of them."""
        with suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)
            self.control.settimeout(0.0 if self.hangs else _FINAL_MESSAGE_TIMEOUT)
            while message := self.control.recv(MAX_MESSAGE_SIZE):
                yield message

    def kill(self) -> None:
        """Kill it; `pidfd` becomes readable."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, and close the lifeline, which ends its remaining children."""
        self.control.close()
        os.close(self._lifeline)
        os.close(self.pidfd)
        self._process.kill()
        self._process.wait()
