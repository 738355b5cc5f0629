"""What this machine runs out of is no fault of the server's, and is said to be this machine's."""

import pytest

from tests.support.namespaces import needs, run_in_namespace

IN_A_NAMESPACE = """
ip link set lo up
sysctl -qw net.ipv4.ip_local_port_range="40000 40020" net.ipv4.tcp_tw_reuse=0 || exit 77
echoserver --port 7868 2> /dev/null & server=$!
for try in 1 2 3 4 5 6 7 8 9; do echoclient --ping 127.0.0.1:7868 && break; done
echoload run -q --engine ENGINE -c 40 -n 400 127.0.0.1:7868; echo "run: $?"
echoload check --only S1,N4 127.0.0.1:7868; echo "check: $?"
kill $server; wait $server
"""


@needs("ip", "sysctl")
@pytest.mark.parametrize("engine", ["threads", "epoll"])
def test_no_local_port_is_left(engine: str) -> None:
    done = run_in_namespace(IN_A_NAMESPACE.replace("ENGINE", engine))
    assert "run: 1" in done.stdout, done.stdout + done.stderr
    assert "connections were not made: no local port is free" in done.stderr
    assert "check: 2" in done.stdout
    assert done.stdout.count("This machine could not connect: no local port is free") == 2
    assert "the server did not answer" not in done.stdout
