"""The protocols between a server and its service manager (systemd, and others like it).

The service manager passes listening sockets as the descriptors from 3 on, and announces them in
the environment (sd_listen_fds(3)). The server reports its state in datagrams to the socket that the
environment names (sd_notify(3)).
"""

import os
import socket
import time
from contextlib import suppress

from echoserver.errors import BootError

_FIRST = 3  # SD_LISTEN_FDS_START


def inherited_descriptors() -> list[int]:
    """Return the descriptors of the listening sockets that a service manager handed over, if any.

    Raises:
        BootError: A descriptor is not a socket that this server can use.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or not int(count):
        return []
    descriptors = []
    for fd in range(_FIRST, _FIRST + int(count)):
        _verify(fd)
        os.set_inheritable(fd, False)
        descriptors.append(fd)
    return descriptors


def _verify(fd: int) -> None:
    what = f"descriptor {fd} that was handed over (LISTEN_FDS)"
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            is_stream = sock.type == socket.SOCK_STREAM
            usable_family = sock.family in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
            is_listener = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise BootError(f"{what} is not a socket: {error.strerror}") from None
    if not (is_stream and usable_family and is_listener):
        raise BootError(
            f"{what} does not listen for TCP or on a UNIX stream socket (ListenStream=, Accept=no)"
        )


class Notifier:
    """Reports the server's state to its service manager, if it has one."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        if address.startswith("@"):  # abstract (unix(7))
            address = "\0" + address[1:]
        self._address = address
        # Made while there are descriptors left: clients may take all the others.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        period, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        mine = pid in {"", str(os.getpid())}
        usable = bool(address) and mine and period.isdecimal()
        self.watchdog = int(period) / 1e6 if usable else 0.0
        """Seconds within which the service manager expects a sign of life; 0: it expects none."""

    def ready(self, status: str) -> None:
        """Tell the service manager that the server serves."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell the service manager that the server reloads its configuration; `ready` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell the service manager that the server drains."""
        self._tell("STOPPING=1", "STATUS=draining")

    def alive(self) -> None:
        """Tell the service manager's watchdog that the main flow is alive."""
        self._tell("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket to the service manager."""
        if self._socket is not None:
            self._socket.close()

    def _tell(self, *states: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(states).encode(), socket.MSG_DONTWAIT, self._address)
