"""Privileges that are given up, for good."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.tls import Trust
from tests.echoserver.test_cli import sentence
from tests.support import inspection, wire
from tests.support.certificates import SERVERS
from tests.support.launching import free_port, run, serving
from tests.support.monitoring import lines

ROOT = os.geteuid() == 0


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("processes", [None, 2])
def test_privileges_are_given_up(exemplar: str, processes: int | None, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    if exemplar in {"process", "gevent"} and not _readable_for_all(Path(sys.executable).resolve()):
        pytest.skip("this Python is readable for root alone, and some of it is needed later")
    settings: dict[str, Any] = {"metrics": "127.0.0.1:0", "access_log": tmp_path / "access.log"}
    settings |= {"user": "nobody", "workers": processes, "port": free_port(low=True)}
    with serving(exemplar, **settings) as server:
        assert wire.served(server.address)
        inspection.settled(server.pid)  # of `process`, the child that served has gone
        processes_ = inspection.tree(server.pid)
        assert len(processes_) >= 3
        for one in processes_:
            status = Path(f"/proc/{one.pid}/status").read_text()
            held = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert held["Uid"].split() == [str(nobody.pw_uid)] * 4
            assert held["Gid"].split() == [str(nobody.pw_gid)] * 4
            assert "0" not in held["Groups"].split()
            assert {int(held[f"Cap{which}"], 16) for which in ("Prm", "Eff", "Inh", "Amb")} == {0}
            assert held["NoNewPrivs"] == "1"
        assert server.stop() == 0


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A folder of the user nobody's, in one that everybody may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name, "log")
        folder.mkdir()
        shutil.chown(folder, "nobody")
        yield folder


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_log_folder_gives_nothing_away(nobodys: Path, *, there: bool) -> None:
    secret = nobodys.parent / "secret"
    if there:
        secret.write_text("root's\n")
        secret.chmod(0o600)
    (nobodys / "access.log").symlink_to(secret)
    said = ("--user", "nobody", "--access-log", str(nobodys / "access.log"))
    result = run("echoserver", "--port", "0", *said, timeout=20)
    assert result.returncode == 3
    assert "--access-log: cannot write" in sentence(result)
    assert secret.exists() == there
    if there:
        assert (secret.stat().st_uid, secret.read_text()) == (0, "root's\n")


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
def test_the_access_log_is_made_by_whom_the_server_becomes(nobodys: Path) -> None:
    file = nobodys / "access.log"
    with serving(user="nobody", access_log=file) as server:
        assert wire.served(server.address)
        assert server.stop() == 0
    assert file.stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert lines(file)


def _readable_for_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in [path, *path.parents])


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
def test_a_key_that_only_root_may_read_outlives_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "server.pem"
    shutil.copy(SERVERS.issue(), file)
    file.chmod(0o600)
    with serving(user="nobody", tls_cert=file) as server:
        os.kill(server.pid, signal.SIGHUP)
        assert wire.eventually(lambda: inspection.events(server, "reloaded"))
        told = inspection.events(server, "certificate_not_reloaded")
        assert [one["reason"] for one in told] == [
            f"cannot read the TLS file {file}: Permission denied"
        ]
        sock = wire.Secured(wire.connect(server.address), Trust(SERVERS.cert))
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--user", "no-such-user"], 2, "--user: there is no 'no-such-user' on this system"),
        (["--user", "root"], 2, "a server must not stay root"),
        (["--user", "0"], 2, "a server must not stay root"),
        (
            ["--user", "nobody", "--group", "no-such-group"],
            2,
            "there is no 'no-such-group' on this system",
        ),
        (["--user", "4123456"], 2, "has no entry; add --group"),
        (["--group", "nogroup"], 2, "--group alone leaves root in place; add --user"),
    ],
)
def test_whom_nobody_can_become(words: list[str], code: int, said: str) -> None:
    result = run("echoserver", "--port", "0", *words)
    assert result.returncode == code
    assert said in sentence(result)


@pytest.mark.skipif(not ROOT, reason="it takes root to be an ordinary user here")
def test_who_is_not_root_becomes_nobody_else() -> None:
    script = """
import importlib, os
from echoserver.system import privileges
from echoserver.config import Config
for module in privileges._NEEDED_LATER:  # this Python may be root's alone
    importlib.import_module(module)
os.setgroups([])
os.setresgid(1234, 1234, 1234)
os.setresuid(1234, 1234, 1234)
privileges.Identity.of("4321", "4321", str).assume()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "that requires root" in done.stderr
