"""The concurrency models, one a file.

A backend answers two questions: who calls accept, and who runs the connection. Everything else
(accept errors, limits, timeouts, counting, the drain, logging) is the core's.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from echoserver.admission.listener import Listener
from echoserver.config import Config
from echoserver.service import Service


class Backend(ABC):
    """One concurrency model; subclass it and write `serve`."""

    summary: ClassVar[str] = "a backend without a description"
    """The model in one line, for ``--list-backends``."""

    cost: ClassVar[str] = "unknown"
    """What a connection costs, in a few words, for the same list."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings that only models which name them read; for other models they have no effect."""

    @classmethod
    def concurrency(cls, config: Config) -> int | None:  # noqa: ARG003 - for subclasses to read
        """Return how many clients the model serves at a time; None: as many as are allowed."""
        return None

    @abstractmethod
    def serve(self, listener: Listener, service: Service) -> None:
        """Accept and serve until the service drains; return when every connection has ended.

        Where code may block, the common shape is ``for connection in listener:``, something that
        calls ``connection.serve()`` in the model's way, and ``service.drain()`` at the end. Where
        nothing can be started for a client, ``connection.refuse(error)``.

        Where code may not block, the model runs flows (`echoserver.flow`): ``listener.flow(start)``
        to its end, and ``connection.driven_by(driver)`` for each connection that `start` is given.
        """
