"""Handlers, which answer the bytes of clients without I/O, so that every model can run them.

A handler never sees a socket, a thread or a loop. It is given what arrived and returns what is
owed; where that takes more than bytes, it returns *steps*, and the model carries each out in its
own way: `Sleep` blocks a thread, parks a greenlet, or arms a timer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, TypeAlias

from echoserver.flow import Sleep

__all__ = ["Answer", "Handler", "Sleep", "Step"]

Step: TypeAlias = bytes | Sleep
Answer: TypeAlias = bytes | Iterable[Step]


class Handler(ABC):
    """One connection's side of the conversation; a fresh one is made for every connection.

    The named parameters of its constructor are its options (``--handler-option KEY=VALUE``).
    """

    answers: ClassVar[Callable[[bytes], bytes]] = bytes
    """The answer to a whole message, for clients that check it: by default the same bytes."""

    @abstractmethod
    def receive(self, data: bytes) -> Answer:
        """Answer the bytes that arrived.

        TCP is a stream: `data` is whatever one read returned, not a message of the peer's.

        Args:
            data: At least one byte, in the order in which the peer sent them.

        Returns:
            The bytes owed for them (the fast path), or an iterable of steps that are carried out
            one after the other. An exception ends this connection and no other.
        """

    def finish(self) -> Answer:
        """Answer the end of the peer's stream; what is still owed goes out before our FIN."""
        return b""
