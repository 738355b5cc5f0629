"""The image, built and run for real: read-only, without privileges, and gone within ten seconds."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support import pace, wire
from tests.support.certificates import SERVERS

ROOT = Path(__file__).parents[2]
IMAGE = "echoserver-under-test"
BASE = "python:3.13-slim"
LOCKED_DOWN = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("docker"),
]


def docker(
    *words: str, timeout: float = 60, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *words], capture_output=True, text=True, timeout=timeout, check=check
    )


@pytest.fixture(scope="module")
def image() -> str:
    try:
        found = docker("image", "inspect", BASE, check=False)
    except FileNotFoundError:
        pytest.skip("docker is not installed")
    if found.returncode:
        pytest.skip(f"no Docker engine that has the image {BASE}")
    # Without a bridge to the world, an engine can still build on the host's network.
    docker("build", "--quiet", "--network=host", "--tag", IMAGE, str(ROOT), timeout=500)
    return IMAGE


@contextmanager
def running(image: str, *options: str) -> Iterator[str]:
    """Run a server, in a container whose only network is its own loopback."""
    name = f"echoserver-{uuid4().hex[:8]}"
    docker("run", "--detach", "--name", name, "--network=none", *LOCKED_DOWN, *options, image)
    try:
        assert wire.eventually(
            lambda: not docker("exec", name, "echoclient", "--ping", check=False).returncode, 20
        )
        yield name
    finally:
        docker("rm", "--force", name)


@pytest.fixture
def server(image: str) -> Iterator[str]:
    with running(image) as name:
        yield name


def test_there_is_no_entrypoint(image: str) -> None:
    config = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    assert not config["Entrypoint"]
    assert config["Cmd"] == ["echoserver"]
    assert config["User"] not in {"", "root", "0"}
    assert config["Healthcheck"]["Test"] == ["CMD", "echoclient", "--ping"]


def test_only_what_runs_is_inside(image: str) -> None:
    result = docker(
        "run", "--rm", "--network=none", image, "python", "-c", "import mypy", check=False
    )
    assert "No module named 'mypy'" in result.stderr


def test_sigterm_drains_pid_1(server: str) -> None:
    load = docker(
        *("run", "--rm", f"--network=container:{server}", *LOCKED_DOWN, IMAGE),
        *("echoload", "run", "127.0.0.1:9999", "-c", "50", "-n", "1000"),
    )
    assert "50 of 50" in load.stdout
    begun = time.monotonic()
    docker("stop", server)
    assert pace.within(time.monotonic() - begun, 10)
    state = json.loads(docker("inspect", server).stdout)[0]["State"]
    assert state["ExitCode"] == 0
    log = [json.loads(line) for line in docker("logs", server).stderr.splitlines()]
    # An image listens on every address and has no certificate: it says so, once.
    assert [line["event"] for line in log[:2]] == ["open_to_all", "listening"]
    assert (log[1]["host"], log[1]["pid"]) == ("0.0.0.0", 1)
    assert log[-1]["event"] == "stopped"
    assert log[-1]["bytes_in"] == log[-1]["bytes_out"] > 0


@pytest.mark.parametrize(
    "layout", ["--env=ECHOSERVER_BACKEND=process", "--env=ECHOSERVER_WORKERS=2"]
)
def test_everything_beside_it(image: str, layout: str, tmp_path: Path) -> None:
    """TLS, metrics and an access log, read-only and without any rights."""
    certificate = tmp_path / "both.pem"
    shutil.copyfile(SERVERS.issue(), certificate)
    tmp_path.chmod(0o755)
    certificate.chmod(0o644)
    settings = {
        "ECHOSERVER_TLS_CERT": "/tls/both.pem",
        "ECHOSERVER_METRICS": "127.0.0.1:9100",
        "ECHOSERVER_ACCESS_LOG": "-",
    }
    options = [f"--env={name}={value}" for name, value in settings.items()]
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9100/{}').read().decode())"
    with running(image, layout, *options, f"--volume={tmp_path}:/tls:ro") as name:
        load = docker(
            *("run", "--rm", f"--network=container:{name}", *LOCKED_DOWN, IMAGE),
            *("echoload", "run", "127.0.0.1:9999", "--tls", "--insecure", "-c", "20", "-n", "400"),
        )
        assert "20 of 20" in load.stdout
        ready = docker("exec", name, "python", "-c", ask.format("readyz")).stdout
        assert ready.split() == ["ready"]
        metrics = docker("exec", name, "python", "-c", ask.format("metrics")).stdout
        docker("stop", name)
        state = json.loads(docker("inspect", name).stdout)[0]["State"]
        assert state["ExitCode"] == 0
        told = docker("logs", name)
    stopped = json.loads(told.stderr.splitlines()[-1])
    assert stopped["event"] == "stopped"
    accesses = [json.loads(line) for line in told.stdout.splitlines()]
    assert sum(one["bytes_in"] for one in accesses) == stopped["bytes_in"] > 0
    assert len(accesses) == stopped["connections"] > 20
    assert "echoserver_connections_total" in metrics


def test_the_exit_code_of_the_load_is_the_verdict(server: str) -> None:
    wrong = docker(
        *("run", "--rm", f"--network=container:{server}", IMAGE),
        *("echoload", "run", "127.0.0.1:9999", "-c", "2", "-n", "2", "--handler", "upper"),
        check=False,
    )
    assert wrong.returncode == 4


def test_the_health_check_follows_the_settings(image: str) -> None:
    name = f"echoserver-{uuid4().hex[:8]}"
    docker(
        *("run", "--detach", "--name", name, "--network=none", "--health-interval=1s"),
        *("--env=ECHOSERVER_PORT=7777", "--env=ECHOSERVER_HANDLER=upper", image),
    )
    try:
        assert wire.eventually(
            lambda: (
                '"Status":"healthy"'
                in docker("inspect", "--format", "{{json .State.Health}}", name).stdout
            ),
            30,
        )
    finally:
        docker("rm", "--force", name)


def test_compose_gives_the_verdict(image: str) -> None:
    compose = ["docker", "compose"]
    if subprocess.run([*compose, "version"], capture_output=True, check=False).returncode:
        if shutil.which("docker-compose") is None:
            pytest.skip("no docker compose")
        compose = ["docker-compose"]
    docker("tag", image, "echoserver")
    project = [*compose, "--project-name", f"echoserver-{uuid4().hex[:8]}"]

    def up(**environment: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*project, "up", "--no-build", "--exit-code-from", "load"],
                cwd=ROOT,
                # No bridge is needed: both share one loopback.
                env={**os.environ, "SERVER_NETWORK": "none", "LOAD_DURATION": "1s", **environment},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        finally:
            subprocess.run([*project, "down"], cwd=ROOT, capture_output=True, check=False)

    right = up(LOAD_CONNECTIONS="50", ECHOSERVER_BACKEND="gevent", ECHOSERVER_HANDLER="upper")
    assert right.returncode == 0, right.stdout + right.stderr
    assert "50 of 50" in right.stdout
    assert '"backend": "gevent"' in right.stdout
    assert up(LOAD_CONNECTIONS="70000").returncode == 2
