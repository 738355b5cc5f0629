"""The concurrency models, one a file.

A backend answers two questions: who calls accept, and who runs the connection. Everything else
(accept errors, limits, timeouts, counting, the drain, logging) is the core's.
"""

import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from echoserver.config import Config
from echoserver.listener import Listener
from echoserver.service import Service


class Backend(ABC):
    """One concurrency model; subclass it and write `serve`."""

    summary: ClassVar[str] = "a backend without a description"
    """The model in one line, for ``--list-backends``."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings that this model alone reads; elsewhere they would have no effect."""

    poll: ClassVar[Callable[[], Any]] = select.poll
    """What the main flow waits with; a cooperative ``poll`` where blocking would stop everyone."""

    @classmethod
    def concurrency(cls, config: Config) -> int | None:  # noqa: ARG003 - for subclasses to read
        """Return how many clients the model serves at a time; None: as many as are allowed."""
        return None

    @abstractmethod
    def serve(self, listener: Listener, service: Service) -> None:
        """Accept and serve until the service drains; return when every connection has ended.

        The common shape is ``for connection in listener:``, something that calls
        ``connection.serve()`` in the model's way, and ``service.drain()`` at the end. Where
        nothing can be started for a client, ``connection.refuse(error)``.
        """
