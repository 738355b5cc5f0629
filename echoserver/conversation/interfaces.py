"""What a conversation needs of its surroundings: something to read and write, times, a state."""

from typing import Protocol

from echoserver.lifecycle.state import State


class Timeouts(Protocol):
    """How long a connection waits; see `Config`."""

    @property
    def idle_timeout(self) -> float:
        """Seconds without a byte from the peer."""

    @property
    def write_timeout(self) -> float:
        """Seconds in which the peer takes nothing."""

    @property
    def handshake_timeout(self) -> float:
        """Seconds that a TLS handshake may take."""


class Stream(Protocol):
    """What a conversation goes over: a socket, or TLS over one."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Return what has come, about `size` bytes; b"" at the end (recv(2))."""

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Return how much of `data` was taken (send(2))."""


class Tls(Stream, Protocol):
    """TLS over a socket; see `echoserver.conversation.tls.TlsSocket`."""

    touched: bool
    """The peer has sent something."""
    truncated: bool
    """The peer's stream ended without a close_notify."""
    heard: float
    """When content came last (``monotonic``)."""
    raise_on_no_data: bool
    """Its ``recv`` raises `NoApplicationData` where it waited, and no application data came."""

    @property
    def blocked(self) -> bool:
        """There is something to be sent for which the socket had no room."""

    @property
    def pending(self) -> bool:
        """Its ``recv`` has something to tell for which the socket is not readable."""

    def handshake(self, flags: int = 0) -> None:
        """Greet, and be greeted."""

    def close_notify(self, flags: int = 0) -> None:
        """End our direction of the stream."""


class Terms(Protocol):
    """On which terms a conversation is held: what holds now, and whether it goes on."""

    @property
    def config(self) -> Timeouts:
        """The timeouts that hold now."""

    @property
    def lifecycle(self) -> State:
        """Says when to end."""
