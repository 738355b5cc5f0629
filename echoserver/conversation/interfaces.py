"""What a conversation needs from its surroundings: a stream, timeouts and a state."""

from typing import Protocol

from echoserver.lifecycle.state import State


class Timeouts(Protocol):
    """The timeouts of a connection; see `Config`."""

    @property
    def idle_timeout(self) -> float:
        """Seconds without a byte from the peer after which the connection ends."""

    @property
    def write_timeout(self) -> float:
        """Seconds in which the peer takes no output, after which the connection ends."""

    @property
    def handshake_timeout(self) -> float:
        """Seconds that a TLS handshake may take."""


class Stream(Protocol):
    """What carries a conversation: a socket, or TLS over one."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Return what has come, about `size` bytes; b"" at the end (recv(2))."""

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Return how much of `data` was taken (send(2))."""


class Tls(Stream, Protocol):
    """TLS over a socket; see `echoserver.conversation.tls.TlsSocket`."""

    peer_has_sent: bool
    """Whether the peer has sent anything."""
    truncated: bool
    """Whether the peer's stream ended without a close_notify."""
    last_data_time: float
    """When application data came last (``monotonic``)."""
    raise_on_no_data: bool
    """Whether ``recv`` raises `NoApplicationData` if it waited, and no application data came."""

    @property
    def blocked(self) -> bool:
        """Whether there is output for which the socket had no room."""

    @property
    def pending(self) -> bool:
        """Whether ``recv`` has a result although the socket is not readable."""

    def handshake(self, flags: int = 0) -> None:
        """Do the TLS handshake."""

    def close_notify(self, flags: int = 0) -> None:
        """Send close_notify, which ends our direction of the stream."""


class Terms(Protocol):
    """The terms of a conversation: its timeouts, and whether it goes on."""

    @property
    def config(self) -> Timeouts:
        """The timeouts that apply now."""

    @property
    def lifecycle(self) -> State:
        """The state that says when to end."""
