"""The addresses that `echoload check` takes: as every other command does."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

import echoserver
from clients.address import format_socket_address, resolve_reachable
from tests.support.launching import free_port
from tests.support.namespaces import needs, run_in_namespace

Infos = list[tuple[Any, ...]]


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Let every name have these addresses, in this order."""
    original = socket.getaddrinfo

    def resolve(addresses: list[str]) -> None:
        def getaddrinfo(_host: str, port: int, **more: Any) -> Infos:
            return [info for address in addresses for info in original(address, port, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve


@pytest.mark.parametrize("order", [["::1", "127.0.0.1"], ["127.0.0.1", "::1"]], ids=str)
@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_of_several_addresses_the_one_that_accepts(
    host: str, order: list[str], resolved: Callable[[list[str]], None]
) -> None:
    with echoserver.spawn(host=host) as server:
        resolved(order)
        assert resolve_reachable("a-name", server.port)[0] == host


def test_where_none_accepts_it_is_the_first(resolved: Callable[[list[str]], None]) -> None:
    resolved(["::1", "127.0.0.1"])
    assert resolve_reachable("a-name", free_port())[0] == "::1"


IN_A_NAMESPACE = """
ip link set lo up; ip -6 addr add fe80::1/64 dev lo nodad || exit 77
echoserver --host fe80::1%lo --port 7865 2> /dev/null & server=$!
for try in 1 2 3 4 5 6 7 8 9; do echoclient --ping '[fe80::1%lo]:7865' && break; done
echoload check --only L1,L2,S1 '[fe80::1%lo]:7865'; code=$?
kill $server; wait $server
exit $code
"""


@needs("ip")
def test_a_link_local_address_keeps_its_scope() -> None:
    done = run_in_namespace(IN_A_NAMESPACE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[fe80::1%lo]:7865" in done.stdout


def test_an_address_is_shown_as_it_is_typed() -> None:
    assert format_socket_address(("127.0.0.1", 9)) == "127.0.0.1:9"
    assert format_socket_address(("::1", 9, 0, 0)) == "[::1]:9"
    number = socket.if_nametoindex("lo")
    assert format_socket_address(("fe80::1", 9, 0, number)) == "[fe80::1%lo]:9"
