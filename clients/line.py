"""A connection of the epoll engine, and the conversation over it."""

import inspect
from collections.abc import Callable

from clients.conversation import Conversation
from clients.steps import NEVER, Lost, Step, Talk
from clients.tls import Socket

ToTalk = Callable[[bytes | None], bytes | Step | Lost]
ToSend = Callable[[bytes], int]
ToReceive = Callable[[int], bytes]


def say_nothing(_came: bytes | None) -> bytes:
    """Say what a conversation wants that has not begun."""
    return b""


class Line:
    """A connection, and the conversation over it."""

    __slots__ = (
        *("connection", "fd", "open", "peer", "recv", "send", "talk", "unsent", "until"),
        "_conversation",
    )

    connection: Socket
    talk: ToTalk
    send: ToSend
    recv: ToReceive

    def __init__(self, peer: Conversation) -> None:
        self.peer = peer
        self.open = False
        self.until = NEVER
        self.unsent = bytearray()
        self._conversation: Talk | None = None

    def converse(self, talk: Talk) -> None:
        """Have this conversation from now on."""
        self._conversation, self.talk = talk, talk.send

    @property
    def over(self) -> bool:
        """The conversation has ended, or not begun."""
        talk = self._conversation
        return talk is None or inspect.getgeneratorstate(talk) == inspect.GEN_CLOSED

    def throw(self, error: OSError) -> bytes | Step | Lost:
        """Let the conversation know what broke its connection; return what it wants then."""
        assert self._conversation is not None  # noqa: S101 - it is not over
        return self._conversation.throw(error)

    @property
    def tools(self) -> "tuple[Line, ToReceive, ToTalk, ToSend]":
        """What the loop needs."""
        return self, self.recv, self.talk, self.send

    def use(self, sock: Socket, talk: ToTalk) -> None:
        """Talk over this connection from now on."""
        self.connection, self.talk, self.open = sock, talk, True
        self.fd = sock.fileno()
        self.send, self.recv = sock.send, sock.recv
        self.unsent.clear()

    def queue(self, data: bytes) -> int:
        """Take the place of `send` while something before it waits to be sent."""
        self.unsent += data
        return len(data)
