"""Flows that are run by a thread that blocks."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

from echoserver import blocking
from echoserver.flow import Wait
from echoserver.state import State


def test_a_thread_that_begins_what_is_being_abandoned_just_leaves() -> None:
    """At the end of a drain, the main thread closes the flows that even being cut did not end."""
    closing, go_on = threading.Event(), threading.Event()

    def flow() -> Iterator[Wait | None]:
        try:
            yield None
        finally:
            closing.set()
            go_on.wait(10)

    class Abandoned:
        sock = socket.socket()
        the_flow: Any = flow()

        def driven_by(self, *_: Any, **__: Any) -> Any:
            return self.the_flow

    connection: Any = Abandoned()
    with connection.sock:
        next(connection.the_flow)
        abandoning = threading.Thread(target=connection.the_flow.close)
        abandoning.start()
        assert closing.wait(10)
        serving = threading.Thread(
            target=lambda: blocking.BlockedThread(connection, State(1)).run()
        )
        serving.start()  # pytest fails what a thread raises
        serving.join(10)
        go_on.set()
        abandoning.join(10)
        assert not serving.is_alive()
