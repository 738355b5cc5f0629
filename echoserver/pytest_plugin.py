"""A pytest plugin: the fixture `echo_server`, a server beside each test that asks for it.

::

    def test_my_client(echo_server):
        assert my_client.ask(echo_server.address, b"hello") == b"hello"

    @pytest.mark.echo_server(backend="gevent", handler="upper")
    def test_upper(echo_server): ...
"""

from collections.abc import Iterator

import pytest

import echoserver


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker, for ``--markers`` and ``--strict-markers``."""
    config.addinivalue_line(
        "markers",
        "echo_server(**settings): settings of the server that the fixture echo_server starts",
    )


@pytest.fixture
def echo_server(request: pytest.FixtureRequest) -> Iterator["echoserver.SpawnedServer"]:
    """A running echo server: `address`, `host`, `port`, `pid`, `stop()`.

    It listens on a free port of 127.0.0.1. ``@pytest.mark.echo_server(backend="gevent")`` sets
    any setting of `echoserver.Config`.
    """
    settings = {}
    for marker in reversed(list(request.node.iter_markers("echo_server"))):
        settings.update(marker.kwargs)
    with echoserver.spawn(**settings) as server:
        yield server
