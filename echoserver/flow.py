"""Flows: code that waits, without knowing how the waiting is done.

A flow is a generator. Where it would block, it yields what it waits for; a concurrency model
carries that out in its own way (blocks the thread, parks the greenlet, asks an event loop) and
resumes the flow. So a conversation is written once, and every model runs it.

A flow is resumed with ``None`` when what it waited for has come, and with ``True`` when it has not:
its time has passed, or the flow was woken. (Of a `Sleep`, it is the time that has come.) So the
simplest driver, for one flow, which nobody wakes, is::

    in_vain = None
    while True:  # until StopIteration
        wait = flow.send(in_vain)
        if isinstance(wait, Sleep):
            time.sleep(wait.seconds)
            in_vain = None
        elif isinstance(wait, Readable):
            in_vain = not select([wait.fd], [], [], wait.seconds)[0] or None
        else:
            in_vain = not select([], [wait.fd], [], wait.seconds)[1] or None

A flow that yields the very same open-ended wait again has nothing new to register.
"""

from collections.abc import Generator
from typing import TypeAlias

from echoserver.handlers import Sleep


class Readable:
    """Wait until `fd` has input, or an end."""

    __slots__ = ("fd", "seconds")

    def __init__(self, fd: int, seconds: float | None = None) -> None:
        self.fd = fd
        self.seconds = seconds
        """For so long at most. None: until it comes, or the flow is woken."""


class Writable:
    """Wait until `fd` has room for output."""

    __slots__ = ("fd", "seconds")

    def __init__(self, fd: int, seconds: float | None) -> None:
        self.fd = fd
        self.seconds = seconds
        """For so long at most; None: without end. Being woken does not end it."""


Wait: TypeAlias = Readable | Writable | Sleep

InVain: TypeAlias = bool | None
"""What a flow is resumed with: True, where what it waited for has not come."""

Flow: TypeAlias = Generator[Wait, InVain, None]
