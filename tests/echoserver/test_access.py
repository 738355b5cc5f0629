"""Who may connect: rules by address, limits by address, and balancers that pass clients on."""

import ipaddress
import json
import os
import signal
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from proxyprotocol.detect import ProxyProtocolDetect
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

import echoserver
from clients.tls import Trust
from echoserver.admission import proxy_protocol
from echoserver.service.quota import AddressTable, quota_key
from echoserver.service.rules import address_of
from tests.echoserver.test_cli import sentence
from tests.support import inspection, pace, wire
from tests.support.certificates import SERVERS
from tests.support.launching import run, serving, totals


def answered(sock: socket.socket) -> bool:
    try:
        return wire.ask(sock, b"hello") == b"hello"
    except ConnectionError:
        return False


def turned_away(sock: socket.socket) -> bool:
    return wire.read_to_end(sock) == b""


# -- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "welcome", "others"),
    [
        ({"allow": "127.0.0.0/29"}, ["127.0.0.1", "127.0.0.7"], ["127.0.0.8", "127.1.0.1"]),
        ({"deny": "127.0.0.2"}, ["127.0.0.1", "127.0.0.3"], ["127.0.0.2"]),
        ({"allow": ["127.0.0.0/8", "::1"], "deny": "127.0.0.2"}, ["127.0.0.1"], ["127.0.0.2"]),
        ({"allow": "::1"}, [], ["127.0.0.1"]),
    ],
    ids=str,
)
def test_rules(rules: dict[str, Any], welcome: list[str], others: list[str]) -> None:
    with serving(**rules) as server:
        assert all(answered(wire.connect(server.address, source=one)) for one in welcome)
        assert all(turned_away(wire.connect(server.address, source=one)) for one in others)
        found = totals(server)
        assert (found["connections"], found["denied"]) == (len(welcome), len(others))


def test_an_ipv4_client_of_an_ipv6_socket_is_spelled_as_ipv4_everywhere(tmp_path: Path) -> None:
    accesses = tmp_path / "access.log"
    with serving(
        "selector", host="::", deny="127.0.0.2", log_level="debug", access_log=accesses
    ) as server:
        ipv4 = ("127.0.0.1", server.port)
        assert answered(wire.connect(ipv4))
        assert answered(wire.connect(("::1", server.port)))
        assert turned_away(wire.connect(ipv4, source="127.0.0.2"))
        assert server.stop() == 0
    opened = {
        event["peer"].rpartition(":")[0] for event in inspection.events(server, "connection_opened")
    }
    assert opened == {"127.0.0.1", "[::1]"}
    assert [event["client"] for event in inspection.events(server, "client_denied")] == [
        "127.0.0.2"
    ]
    said = {
        json.loads(line)["peer"].rpartition(":")[0] for line in accesses.read_text().splitlines()
    }
    assert said == opened


def test_a_listener_on_a_mapped_address_is_spelled_as_ipv4() -> None:
    with serving("selector", host="::ffff:127.0.0.1") as server:
        assert server.host == "127.0.0.1"
        assert answered(wire.connect(server.address))


@pytest.mark.parametrize("network", ["::ffff:127.0.0.1", "::ffff:127.0.0.0/104", "::ffff:0:0/96"])
def test_an_ipv4_network_in_the_manner_of_ipv6(network: str) -> None:
    with serving(deny=network) as server:
        assert turned_away(wire.connect(server.address))
    with serving(allow=network) as server:
        assert answered(wire.connect(server.address))


def test_rules_hold_for_every_backend(backend: str) -> None:
    with serving(backend, deny="127.0.0.2", workers=2) as server:
        before = inspection.settled(server.pid)
        for _ in range(10):
            assert turned_away(wire.connect(server.address, source="127.0.0.2"))
            wire.opened.pop().close()
        assert answered(wire.connect(server.address))
        wire.opened.pop().close()
        assert wire.eventually(lambda: inspection.state(server.pid) == before)
        assert totals(server)["denied"] == 10
        assert len(inspection.events(server, "client_denied")) < 10, "one line a second"


def test_an_ipv4_client_of_an_ipv6_socket_is_known_by_its_ipv4_address() -> None:
    with serving(host="::", allow="127.0.0.1") as server:
        assert answered(wire.connect(("127.0.0.1", server.port)))
        assert turned_away(wire.connect(("127.0.0.1", server.port), source="127.0.0.2"))
        assert not inspection.events(server, "open_to_all")


def test_rules_come_before_tls() -> None:
    with serving(tls_cert=SERVERS.issue(), deny="127.0.0.2") as server:
        sock = wire.connect(server.address, source="127.0.0.2")
        assert turned_away(sock), "and not even an alert"
        assert totals(server)["tls_failures"] == 0


def test_a_reload_changes_the_rules(tmp_path: Any) -> None:
    file = tmp_path / "server.toml"
    file.write_text('deny = "127.0.0.2"')
    with serving(arguments=["--config", str(file)]) as server:
        assert turned_away(wire.connect(server.address, source="127.0.0.2"))
        file.write_text('deny = ["127.0.0.3"]')
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: inspection.events(server, "reloaded"))
        assert answered(wire.connect(server.address, source="127.0.0.2"))
        assert turned_away(wire.connect(server.address, source="127.0.0.3"))


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, True),
        ({"allow": "192.0.2.0/24"}, False),
        ({"tls_cert": SERVERS.issue()}, False),
        ({"host": "127.0.0.1"}, False),
    ],
    ids=["open", "rules", "TLS", "loopback"],
)
def test_an_address_for_everybody_is_warned_of_once(
    settings: dict[str, Any], *, warned: bool
) -> None:
    with serving(**{"host": "0.0.0.0", **settings}) as server:
        assert server.stop() == 0
        assert len(inspection.events(server, "open_to_all")) == warned


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--allow", "192.0.2.1/24"], "bits beyond the prefix are set"),
        (["--deny", "nobody"], "--deny must be an address or a network, such as 192.0.2.0/24"),
        (["--proxy-protocol"], "--proxy-protocol needs --proxy-from"),
        (["--proxy-from", "192.0.2.1"], "--proxy-from has no effect without --proxy-protocol"),
        (["--max-connections-per-ip", "0"], "--max-connections-per-ip must be a whole number"),
    ],
)
def test_what_makes_no_sense(words: list[str], said: str) -> None:
    result = run("echoserver", "--port", "0", *words)
    assert result.returncode == 2
    assert said in sentence(result)


# -- limits by address ---------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [None, 2])
def test_connections_of_one_address(exemplar: str, processes: int | None) -> None:
    with serving(exemplar, max_connections_per_ip=3, workers=processes) as server:
        mine = [wire.connect(server.address) for _ in range(3)]
        assert all(map(answered, mine))
        for _ in range(5):
            assert turned_away(wire.connect(server.address))
        assert answered(wire.connect(server.address, source="127.0.0.2")), "it has its own three"
        assert wire.finish(mine[0]) == b""
        assert wire.eventually(lambda: answered(wire.connect(server.address)))
        assert totals(server)["rejected_per_ip"] >= 5


def test_a_reload_can_bring_more_addresses_than_there_were(tmp_path: Any) -> None:
    file = tmp_path / "server.toml"
    file.write_text('backend = "iterative"\n')
    several: dict[str, Any] = {
        "workers": 1,
        "max_connections_per_ip": 5,
    }
    with echoserver.spawn(arguments=["--config", str(file)], **several) as server:
        file.write_text('backend = "thread"\n')
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: inspection.events(server, "reloaded"))
        for number in range(2, 40):
            assert answered(wire.connect(server.address, source=f"127.0.0.{number}"))


def test_the_most_connections_there_can_be() -> None:
    with serving(workers=2, max_connections=10_000_000, max_connections_per_ip=1) as server:
        assert answered(wire.connect(server.address, source="127.0.0.2"))


def test_a_full_table_turns_new_addresses_away() -> None:
    table = AddressTable(1, 1)
    taken = sum(table.take(0, bytes([number] * 16), 1) for number in range(1, 20))
    assert 1 <= taken < 19
    table.give(0, bytes([1] * 16))
    assert table.take(0, bytes([99] * 16), 1)
    table.close()


def test_a_worker_that_dies_gives_its_connections_back() -> None:
    with serving("thread", max_connections_per_ip=2, workers=2) as server:
        mine = [wire.connect(server.address) for _ in range(2)]
        assert all(map(answered, mine))
        for pid in inspection.servers(server.pid):
            if pid != server.pid:
                os.kill(pid, signal.SIGKILL)
        assert wire.eventually(lambda: answered(wire.connect(server.address)))


def test_addresses_are_counted_as_customers_have_them() -> None:
    assert quota_key("192.0.2.1") == quota_key("::ffff:192.0.2.1")
    assert quota_key("192.0.2.1") != quota_key("192.0.2.2")
    assert quota_key("2001:db8::1") == quota_key("2001:db8::2")
    assert quota_key("2001:db8::1") != quota_key("2001:db8:0:1::1")
    assert str(address_of("fe80::1%eth0")) == "fe80::1"


class AddressTableMachine(RuleBasedStateMachine):
    """Against a counter of each process, in a table so small that keys collide."""

    keys = st.integers(0, 11).map(lambda n: struct.pack("=QQ", 0, n))
    accounts = st.integers(0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.table = AddressTable(2, 6)
        self.counted: list[Counter[bytes]] = [Counter(), Counter()]

    @rule(account=accounts, key=keys, limit=st.integers(1, 4))
    def take(self, account: int, key: bytes, limit: int) -> None:
        if len(self.counted[account]) >= 6 and key not in self.counted[account]:
            return  # so many connections it cannot have
        together = sum(counter[key] for counter in self.counted)
        assert self.table.take(account, key, limit) == (together < limit)
        if together < limit:
            self.counted[account][key] += 1

    @rule(account=accounts, key=keys)
    def give(self, account: int, key: bytes) -> None:
        if self.counted[account][key]:
            self.table.give(account, key)
            self.counted[account] -= Counter({key: 1})

    @rule(account=accounts, seldom=st.integers(0, 19))
    def wipe(self, account: int, seldom: int) -> None:
        if seldom:
            return
        self.table.wipe(account)
        self.counted[account].clear()

    @invariant()
    def all_are_found(self) -> None:
        for account, counter in enumerate(self.counted):
            for key, count in (+counter).items():
                assert self.table._find(account, key)[1] == count
            assert self.table._entry_count(account) == len(+counter)

    def teardown(self) -> None:
        self.table.close()


TestAddressTable = AddressTableMachine.TestCase
TestAddressTable.settings = settings(max_examples=100, deadline=None)


def test_a_rule_about_nobody_is_a_mistake() -> None:
    for nobody in (",", " "):
        with pytest.raises(echoserver.ConfigError, match="ECHOSERVER_ALLOW must be at least one"):
            echoserver.load_config(environment={"ECHOSERVER_ALLOW": nobody})
    for number in (2130706433, True):  # which an address can be written as, in Python
        with pytest.raises(echoserver.ConfigError, match="allow must be an address"):
            echoserver.Config(allow=(number,))  # type: ignore[arg-type]


# -- PROXY protocol ------------------------------------------------------------------------------

V2 = b"\r\n\r\n\0\r\nQUIT\n"
HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 9999\r\n"
HEADER_2 = V2 + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 7, 192, 0, 2, 1]) + b"\xc3\x50\x27\x0f"
BEHIND = {"proxy_protocol": True, "proxy_from": "127.0.0.1"}


def tlv(size: int) -> bytes:
    return struct.pack("!BH", 0x04, size) + bytes(size)


def version_2(command: int, family: int, block: bytes) -> bytes:
    return V2 + struct.pack("!BBH", command, family, len(block)) + block


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (HEADER, ("192.0.2.7", 50000)),
        (b"PROXY TCP6 2001:db8::7 ::1 1 65535\r\n", ("2001:db8::7", 1)),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 65535\r\n", ("192.0.2.7", 1)),
        (
            version_2(0x21, 0x21, ipaddress.ip_address("::ffff:192.0.2.7").packed * 2 + bytes(4)),
            ("192.0.2.7", 0),
        ),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 whatever 1 2\r\n", None),
        (HEADER_2, ("192.0.2.7", 50000)),
        (version_2(0x21, 0x11, HEADER_2[16:] + tlv(200)), ("192.0.2.7", 50000)),
        (
            version_2(0x21, 0x21, ipaddress.ip_address("2001:db8::7").packed * 2 + bytes(4)),
            ("2001:db8::7", 0),
        ),
        (version_2(0x20, 0x00, b""), None),
        (version_2(0x20, 0x11, tlv(9)), None),
        (version_2(0x21, 0x00, tlv(9)), None),
        (version_2(0x21, 0x31, bytes(216)), None),
    ],
)
def test_headers(header: bytes, source: tuple[str, int] | None) -> None:
    found = proxy_protocol.parse(header + b"PROXY and more")
    assert found == proxy_protocol.Header(len(header), source)
    assert all(proxy_protocol.parse(header[:cut]) is None for cut in range(len(header)))


@given(version=st.sampled_from([4, 6]), data=st.data())
def test_another_implementation_reads_ours_and_is_read(version: int, data: st.DataObject) -> None:
    """That of the package proxy-protocol."""
    hosts = (st.ip_addresses(v=4) if version == 4 else st.ip_addresses(v=6)).map(str)
    ports = st.integers(0, 65535)
    ends = st.tuples(hosts, ports)
    source, destination = data.draw(ends), data.draw(ends)
    kind: Any = {4: ProxyResultIPv4, 6: ProxyResultIPv6}[version]
    made = kind(
        *((ipaddress.ip_address(host), port) for host, port in (source, destination)),
        protocol=socket.SOCK_STREAM,
    )
    mapped = ipaddress.ip_address(source[0])
    said = getattr(mapped, "ipv4_mapped", None) or mapped  # as which a client is known here
    for name, other in (("v1", ProxyProtocolV1()), ("v2", ProxyProtocolV2())):
        ours = proxy_protocol.encode(name, source, destination)
        read: Any = ProxyProtocolDetect().unpack(ours)
        assert (str(read.source[0]), read.source[1]) == source
        assert (str(read.dest[0]), read.dest[1]) == destination
        theirs = other.pack(made)
        found = proxy_protocol.parse(theirs + b"and more")
        assert found == proxy_protocol.Header(len(theirs), (str(said), source[1]))


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.0\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 50000\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 9999 1\r\n",
        b"PROXY TCP4  192.0.2.7 192.0.2.1 50000 9999\r\n",
        b"PROXY TCP4 192.0.2.07 192.0.2.1 50000 9999\r\n",
        b"PROXY TCP4 ::1 ::1 50000 9999\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 50000 9999\r\n",
        b'PROXY TCP6 fe80::1%\n{"peer":"forged"}\n ::1 1 2\r\n',
        b"PROXY TCP4 192.0.2.7 192.0.2.1 050000 9999\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 9999\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 9999\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 \xb9 9999\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 50000 9999\r\n",
        b"proxy TCP4 192.0.2.7 192.0.2.1 50000 9999\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 9999\n" + bytes(100),
        b"PROXY UNKNOWN " + b"x" * 94,
        version_2(0x11, 0x11, HEADER_2[16:]),
        version_2(0x22, 0x11, HEADER_2[16:]),
        version_2(0x21, 0x12, HEADER_2[16:]),
        version_2(0x21, 0x11, HEADER_2[16:-1]),
        version_2(0x21, 0x21, HEADER_2[16:]),
        version_2(0x21, 0x11, HEADER_2[16:] + bytes(5000)),
        V2[:-1] + b"?",
    ],
)
def test_what_is_no_header(header: bytes) -> None:
    with pytest.raises(ValueError, match="PROXY header"):
        proxy_protocol.parse(header)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2, V2 + b"\x21"]))
def test_whatever_comes_is_told_apart(data: bytes, beginning: bytes) -> None:
    """It never fails in another way, and a header is the same however much follows it."""
    said = beginning + data
    try:
        found = proxy_protocol.parse(said)
    except ValueError:
        return
    if found is not None:
        assert found.length <= len(said)
        assert proxy_protocol.parse(said[: found.length]) == found
        assert found.source is None or address_of(found.source[0]) is not None


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(addresses, st.integers(0, 65535))
def test_what_is_written_is_read(address: Any, port: int) -> None:
    line = f"PROXY TCP{address.version} {address} {address} {port} 1\r\n".encode()
    block = address.packed * 2 + struct.pack("!HH", port, 1)
    family = 0x11 if address.version == 4 else 0x21
    spelled = getattr(address, "ipv4_mapped", None) or address
    for header in (line, version_2(0x21, family, block)):
        assert proxy_protocol.parse(header) == proxy_protocol.Header(
            len(header), (str(spelled), port)
        )


@pytest.mark.parametrize("header", [HEADER, HEADER_2], ids=["v1", "v2"])
def test_a_client_behind_a_balancer(exemplar: str, header: bytes) -> None:
    with serving(exemplar, **BEHIND, deny="192.0.2.8", log_level="debug") as server:
        sock = wire.connect(server.address)
        sock.sendall(header + b"at once")  # and none of it is lost
        assert wire.read_exactly(sock, 7) == b"at once"
        assert answered(sock)
        assert wire.finish(sock) == b""
        denied = wire.connect(server.address)
        denied.sendall(HEADER.replace(b"2.7", b"2.8"))
        assert turned_away(denied), "the rules are for clients, and not for the balancer"
        found = totals(server)
        assert (found["connections"], found["denied"], found["bytes_in"]) == (1, 1, 12)
        opened = inspection.events(server, "connection_opened")
        assert opened[0]["peer"] == "192.0.2.7:50000"


def test_a_header_in_pieces(exemplar: str) -> None:
    with serving(exemplar, **BEHIND) as server:
        for header in (HEADER, HEADER_2):
            with wire.connect(server.address) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for value in header:
                    sock.sendall(bytes([value]))
                    time.sleep(0.001)  # so that they arrive one by one
                assert answered(sock)


def test_who_is_no_balancer_is_not_heard(exemplar: str) -> None:
    with serving(exemplar, **BEHIND) as server:
        sock = wire.connect(server.address, source="127.0.0.2")
        sock.sendall(HEADER + b"let me in")
        assert turned_away(sock)
        found = totals(server)
        assert (found["proxy_failures"], found["bytes_in"]) == (1, 0)


@pytest.mark.parametrize(
    "said", [b"", b"hello, is this an echo?", HEADER.replace(b"\r\n", b"\n") + bytes(107)]
)
def test_a_connection_without_a_header(exemplar: str, said: bytes) -> None:
    with serving(exemplar, **BEHIND, handshake_timeout=0.3) as server:
        before = inspection.settled(server.pid)
        sock = wire.connect(server.address)
        sock.sendall(said)
        assert turned_away(sock)
        sock.close()
        assert wire.eventually(lambda: inspection.state(server.pid) == before)
        found = totals(server)
        assert (found["proxy_failures"], found["bytes_in"]) == (1, 0)


def test_silent_balancers_hold_nobody_up(exemplar: str) -> None:
    with serving(exemplar, **BEHIND) as server:
        for _ in range(20):
            wire.connect(server.address).sendall(HEADER[:9])
        sock = wire.connect(server.address)
        begun = time.monotonic()
        sock.sendall(HEADER)
        assert answered(sock)
        assert pace.within(time.monotonic() - begun, 5)  # the header's deadline is ten seconds
        assert server.stop() == 0  # nor the drain
        assert server.stopped is not None
        assert server.stopped["unserved"] == 20


def test_the_limit_of_an_address_is_the_clients() -> None:
    with serving("selector", **BEHIND, max_connections_per_ip=1) as server:
        socks = [wire.connect(server.address) for _ in range(3)]
        for number, sock in enumerate(socks[:2]):  # one after the other: headers have no order
            sock.sendall(HEADER.replace(b"2.7", b"2.%d" % number))
            assert answered(sock)
        socks[2].sendall(HEADER.replace(b"2.7", b"2.0"))
        assert turned_away(socks[2])


def test_tls_behind_a_balancer(exemplar: str) -> None:
    with serving(exemplar, **BEHIND, tls_cert=SERVERS.issue()) as server:
        sock = wire.connect(server.address)
        sock.sendall(HEADER_2)
        secured = wire.Secured(sock, Trust(SERVERS.cert))
        secured.sendall(b"hello")
        assert secured.recv(5) == b"hello"
