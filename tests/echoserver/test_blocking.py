"""Flows that are run by a thread that blocks."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import echoserver
from echoserver.drivers import blocking
from echoserver.flow import Wait
from echoserver.lifecycle.state import State
from tests.support import wire

INTERVAL = """
import sys
import echoserver

class Interval(echoserver.Handler):
    def receive(self, data):
        return b"%.6f" % sys.getswitchinterval()
"""


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
            target=lambda: blocking.BlockingDriver(connection, State(1)).run()
        )
        serving.start()  # pytest fails what a thread raises
        serving.join(10)
        go_on.set()
        abandoning.join(10)
        assert not serving.is_alive()


def test_threads_that_wait_for_the_gil_wake_less_often_where_there_are_many(tmp_path: Path) -> None:
    (tmp_path / "interval.py").write_text(INTERVAL)
    with (
        echoserver.spawn(backend="thread", handler=f"{tmp_path}/interval.py:Interval") as server,
        ExitStack() as crowd,
    ):

        def interval() -> float:
            sock = crowd.enter_context(wire.connect(server.address))
            return float(wire.ask(sock, b"interval"))

        assert interval() == sys.getswitchinterval()
        for _ in range(600):
            crowd.enter_context(wire.connect(server.address))
        assert interval() > 2 * sys.getswitchinterval()
        crowd.close()
        assert wire.eventually(lambda: interval() == sys.getswitchinterval())
