"""The fork server of the backend `process`: lean, replaceable, and nobody outlives it."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import echoserver
from loadtest.machine.sockets import accept_queue
from tests.support import inspection, pace, wire
from tests.support.inspection import events
from tests.support.launching import (
    Child,
    await_listening,
    changed_server,
    command,
    free_port,
    limit_descriptors,
    task_limit,
)

TELLING = """
import sys
import echoserver

class Modules(echoserver.Handler):
    def receive(self, data):
        return ",".join(sys.modules).encode() + b"\\n"
"""


def fork_server(server: echoserver.SpawnedServer) -> psutil.Process:
    (found,) = psutil.Process(server.pid).children()
    return found


def test_what_forks_has_imported_next_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    handler = f"{tmp_path}/telling.py:Modules"
    with (
        echoserver.spawn(backend="process", handler=handler) as server,
        wire.connect(server.address) as sock,
    ):
        sock.sendall(b"?")
        sock.shutdown(socket.SHUT_WR)
        modules = set(wire.read_to_end(sock).decode().strip().split(","))
    assert "echoserver.conversation.connection" in modules
    assert "telling" in "".join(modules)
    assert not modules & {"click", "structlog", "logging", "asyncio", "threading", "subprocess"}


def test_another_one_takes_over_when_it_is_killed() -> None:
    with echoserver.spawn(backend="process") as server:
        first = fork_server(server)
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"X") == b"X"
            (child,) = first.children()
            first.kill()
            with pytest.raises(ConnectionResetError):
                assert sock.recv(1) == b""
                raise ConnectionResetError  # an end is as good
        assert wire.eventually(lambda: wire.served(server.address))
        assert fork_server(server) != first
        assert wire.eventually(lambda: not child.is_running())
        assert wire.eventually(lambda: events(server, "fork_server_died"))
        (event,) = events(server, "fork_server_died")
        assert event["connections"] == 1
        assert inspection.settled(server.pid).zombies == 0
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["connections"] >= 2


_INTERVAL = "import echoserver.forkserver.client as client; client._PING_INTERVAL = "


def test_one_that_hangs_is_replaced() -> None:
    """It is stopped, and so takes orders (into its socket) and carries none of them out."""
    with changed_server(_INTERVAL + "0.1", "-b", "process") as (process, address):
        assert wire.served(address)
        (first,) = psutil.Process(process.pid).children()
        first.suspend()
        waiting = wire.connect(address)
        waiting.sendall(b"HELLO")
        with suppress(ConnectionResetError):
            assert waiting.recv(5) == b"", "it goes with the fork server that was to serve it"
        assert wire.eventually(lambda: wire.served(address))
        assert not first.is_running()
        process.terminate()
        told = [json.loads(line) for line in process.communicate()[1].splitlines()]
        assert process.returncode == 0
    (hung,) = [event for event in told if event["event"] == "fork_server_hangs"]
    assert hung["connections"] >= 1
    assert [event for event in told if event["event"] == "fork_server_died"]


@pytest.mark.slow
def test_one_that_was_suspended_with_its_server_is_not_replaced() -> None:
    """As by ``docker pause``: it had no time to answer, and the server none to ask."""
    with changed_server(_INTERVAL + "0.5", "-b", "process") as (process, address):
        with wire.connect(address) as sock:
            assert wire.ask(sock, b"HELLO") == b"HELLO"
            both = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
            for one in both:
                one.suspend()
            time.sleep(4.0)  # more than it may be silent: that is what is tried
            for one in both:
                one.resume()
            assert wire.ask(sock, b"HELLO") == b"HELLO"
            assert wire.served(address)
        process.terminate()
        assert "fork_server" not in process.communicate()[1]
        assert process.returncode == 0


def test_while_there_can_be_no_other_one_clients_are_refused() -> None:
    with echoserver.spawn(backend="process") as server:
        assert wire.served(server.address)
        inspection.settled(server.pid)
        first = fork_server(server)
        with task_limit([server.pid], spare=0):
            first.kill()
            assert wire.eventually(lambda: not first.is_running())
            with wire.connect(server.address) as sock:
                assert wire.finish(sock) == b""
            assert wire.eventually(
                lambda: any(
                    "cannot start the fork server" in event["error"]
                    for event in events(server, "client_refused")
                )
            )
        assert wire.served(server.address)
        assert server.stop() == 0


def test_children_die_though_server_and_fork_server_are_killed_together() -> None:
    server = echoserver.spawn(backend="process")
    with wire.connect(server.address) as sock:
        assert wire.ask(sock, b"X") == b"X"
        parent = fork_server(server)
        (child,) = parent.children()
        os.kill(server.pid, signal.SIGSTOP)  # or it would end the child itself
        parent.kill()
        server.process.kill()
        assert wire.eventually(lambda: not child.is_running())
    assert wire.eventually(lambda: not inspection.session(server.pid))
    server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_whole_group_are_for_the_server_to_act_on(number: int) -> None:
    with echoserver.spawn(backend="process") as server:
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"X") == b"X"
            group = os.getpgid(fork_server(server).pid)
            assert group != os.getpgid(server.pid)
            fork_server(server).send_signal(number)
            assert wire.ask(sock, b"Y") == b"Y"
            assert wire.served(server.address)
        assert server.stop() == 0


def test_a_handler_that_cannot_be_loaded_there(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(
        "import sys, echoserver\n"
        "if 'click' not in sys.modules: raise RuntimeError('no click here')\n"
        "class Picky(echoserver.Handler):\n"
        "    def receive(self, data): return data\n"
    )
    with pytest.raises(echoserver.BootError, match=r"--handler: .*no click here"):
        echoserver.spawn(backend="process", handler=f"{tmp_path}/picky.py:Picky")


def test_a_handler_from_beside_the_server_has_its_options_there(tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(
        "import echoserver\n"
        "class Shouting(echoserver.Handler):\n"
        "    def __init__(self, marks: int = 1) -> None: self.marks = marks\n"
        "    def receive(self, data): return data + b'!' * self.marks\n"
    )
    handler = f"{tmp_path}/shouting.py:Shouting"
    with (
        echoserver.spawn(
            backend="process", handler=handler, handler_option=[("marks", "3")]
        ) as server,
        wire.connect(server.address) as sock,
    ):
        sock.sendall(b"HO")
        assert wire.read_exactly(sock, 5) == b"HO!!!"


def test_a_reload_costs_no_child_its_report() -> None:
    """What is prepared again must not touch what a living child has told, or is about to tell."""
    with echoserver.spawn(backend="process") as server:
        parent = fork_server(server)
        first = wire.connect(server.address)
        assert wire.ask(first, b"0123456789") == b"0123456789"
        (child,) = parent.children()
        parent.suspend()
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: events(server, "reloaded"))
        second = wire.connect(server.address)  # makes the server say how to serve from now on
        assert wire.eventually(lambda: accept_queue(server.address[1]) == 0)
        inspection.settled(server.pid)
        os.kill(server.pid, signal.SIGSTOP)
        first.close()
        assert wire.eventually(lambda: child.status() == psutil.STATUS_ZOMBIE)
        parent.resume()
        assert wire.ask(second, b"XYZ") == b"XYZ"
        os.kill(server.pid, signal.SIGCONT)
        second.close()
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["bytes_in"] == server.stopped["bytes_out"] == 13


def test_what_a_child_could_not_do_stands_in_the_servers_log(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import echoserver\n"
        "class Failing(echoserver.Handler):\n"
        "    def receive(self, data): return 1 // 0\n"
    )
    with echoserver.spawn(backend="process", handler=f"{tmp_path}/failing.py:Failing") as server:
        with wire.connect(server.address) as sock:
            sock.sendall(b"SECRET")
            assert wire.read_to_end(sock) == b""
        assert wire.eventually(lambda: events(server, "handler_failed"))
        (event,) = events(server, "handler_failed")
        assert event["error"] == "ZeroDivisionError"
        assert event["where"].endswith("in receive")
        assert "SECRET" not in str(event)
        assert server.stop() == 0
        assert server.stopped is not None
        assert server.stopped["handler_errors"] == 1


ECHO = """
import echoserver, os
class Marked(echoserver.Handler):
    def receive(self, data):
        return data + {mark!r}
"""


def asked(server: echoserver.SpawnedServer, size: int) -> bytes:
    with wire.connect(server.address) as sock:
        sock.sendall(b"?")
        return wire.read_exactly(sock, size)


def test_a_reload_takes_the_handlers_new_code(tmp_path: Path) -> None:
    file = tmp_path / "marked.py"
    file.write_text(ECHO.format(mark=b"1"))
    with echoserver.spawn(backend="process", handler=f"{file}:Marked") as server:
        assert asked(server, 2) == b"?1"
        file.write_text(ECHO.format(mark=b"number two"))
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: events(server, "reloaded"))
        assert asked(server, 11) == b"?number two"


def test_a_handler_is_found_by_the_name_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "import echoserver\n"
        "def make(mark):\n"
        "    class Made(echoserver.Handler):\n"
        "        def receive(self, data): return data + mark\n"
        "    return Made\n"
        "class Box: Mine = make(b'!')\n"
    )
    with echoserver.spawn(backend="process", handler=f"{tmp_path}/made.py:Box.Mine") as server:
        assert asked(server, 2) == b"?!"


def test_a_script_may_name_a_handler_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    port = free_port()
    script.write_text(
        "import echoserver\n"
        "class Mine(echoserver.Handler):\n"
        "    def receive(self, data): return data + b'#'\n"
        "if __name__ == '__main__':\n"
        f"    echoserver.serve(backend='process', handler='__main__:Mine', port={port})\n"
    )
    with Child([sys.executable, str(script)], stderr=subprocess.DEVNULL) as process:
        await_listening(port, process)
        with wire.connect(("127.0.0.1", port)) as sock:
            sock.sendall(b"?")
            assert wire.read_exactly(sock, 2) == b"?#"
        process.terminate()
        assert process.wait(10) == 0


def test_what_a_plugin_starts_when_imported_is_its_own_business(tmp_path: Path) -> None:
    (tmp_path / "starting.py").write_text(
        "import subprocess\nsubprocess.Popen(['sleep', '0.5'])\n" + ECHO.format(mark=b"")
    )

    def asleep(server: echoserver.SpawnedServer) -> bool:
        for one in inspection.tree(server.pid):
            with suppress(psutil.NoSuchProcess):
                if one.name() == "sleep" and one.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False

    with echoserver.spawn(backend="process", handler=f"{tmp_path}/starting.py:Marked") as server:
        with wire.connect(server.address) as sock:
            assert wire.ask(sock, b"X") == b"X"
            assert asleep(server)
            assert wire.eventually(lambda: not asleep(server))
            assert wire.ask(sock, b"Y") == b"Y"
            assert wire.served(server.address)
        assert server.stop() == 0
        assert not events(server, "fork_server_died")


def said(server: echoserver.SpawnedServer) -> bytes:
    with wire.connect(server.address) as sock:
        return wire.ask(sock, b"hello")


@pytest.mark.parametrize("spare", range(6))
def test_a_reload_with_hardly_a_descriptor_left(spare: int, tmp_path: Path) -> None:
    """Every client that is served is served right, and none is cut off."""
    toml = tmp_path / "server.toml"
    toml.write_text(f"port = {free_port()}\nhandler = 'upper'\n")
    arguments = ["--config", str(toml)]
    with echoserver.spawn(backend="process", port=None, arguments=arguments) as server:
        assert said(server) == b"HELLO"
        stays = wire.connect(server.address)
        assert wire.ask(stays, b"stays") == b"STAYS"
        inspection.settled(server.pid)
        parent = fork_server(server)
        limit_descriptors(parent.pid, spare)
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: events(server, "reloaded"))
        with suppress(ConnectionError):  # nothing can be started for it
            assert said(server) in {b"HELLO", b""}
        assert wire.ask(stays, b"stays") == b"STAYS"
        resource.prlimit(parent.pid, resource.RLIMIT_NOFILE, (1000, 20000))
        assert said(server) == b"HELLO"
        assert not events(server, "fork_server_died")
        assert server.stop() == 0


def test_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    toml = tmp_path / "server.toml"
    toml.write_text(f"port = {free_port()}\n")
    arguments = ["--config", str(toml)]
    with echoserver.spawn(backend="process", port=None, arguments=arguments) as server:
        assert said(server) == b"hello"
        before = inspection.settled(server.pid)
        for turn in range(1, 6):
            os.kill(server.pid, signal.SIGHUP)
            assert wire.eventually(lambda turn=turn: len(events(server, "reloaded")) == turn)  # type: ignore[misc] # a lambda's defaults
            assert said(server) == b"hello"
        assert inspection.settled(server.pid) == before


def test_a_reason_in_any_language_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "wordy.py").write_text(
        "import sys\nif 'click' not in sys.modules: raise RuntimeError('x' + '\u00fc' * 3000)\n"
        "from echoserver.handlers.echo import EchoHandler\n",
        encoding="utf-8",
    )
    with pytest.raises(echoserver.BootError, match="RuntimeError: x\u00fc"):
        echoserver.spawn(backend="process", handler=f"{tmp_path}/wordy.py:EchoHandler")


@pytest.mark.ci
def test_a_fork_server_that_does_nothing_any_more_holds_up_no_end() -> None:
    with echoserver.spawn(backend="process") as server:
        assert wire.served(server.address)
        fork_server(server).suspend()
        socks = [wire.connect(server.address) for _ in range(60)]
        server.process.terminate()
        assert wire.eventually(lambda: events(server, "draining"), 20) or wire.eventually(
            lambda: accept_queue(server.address[1]) in {0, None}, 20
        )
        server.process.terminate()
        begun = time.monotonic()
        assert server.wait() in {0, 4, 128 + signal.SIGTERM}
        assert pace.within(time.monotonic() - begun, 10)
        assert wire.eventually(lambda: not inspection.session(server.pid))
        for sock in socks:
            sock.close()


def test_a_new_drain_timeout_holds_for_open_connections(tmp_path: Path) -> None:
    """Their children were forked when another one held."""
    file = tmp_path / "server.toml"
    file.write_text("drain-timeout = 0.5\n")
    data = os.urandom(8 << 20)
    port = free_port()
    with Child(
        [command("echoserver"), "-b", "process", "--port", str(port), "--config", str(file)],
        stderr=subprocess.PIPE,
    ) as process:
        address = await_listening(port, process)
        with wire.connect(address) as sock:
            sender = threading.Thread(target=wire.send_what_is_taken, args=[sock, data])
            sender.start()
            received = wire.read_exactly(sock, 1)
            file.write_text("drain-timeout = 30\n")
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            while b"reloaded" not in process.stderr.readline():
                pass
            process.terminate()
            time.sleep(1.5)  # a slow reader is what is tested
            with suppress(ConnectionResetError, BrokenPipeError):
                while piece := sock.recv(1 << 16):
                    received += piece
            sender.join()
        assert data.startswith(received)
        assert process.wait(20) == 0
