"""Files that are read at the start and on SIGHUP: of bounded size, in bounded time."""

import os
import signal
import threading
from pathlib import Path

import pytest

from echoserver.system import files
from tests.echoserver.test_cli import sentence
from tests.support import inspection, wire
from tests.support.certificates import SERVERS
from tests.support.launching import Child, await_listening, command, free_port, run, serving


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "READ_TIMEOUT", 0.05)


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(wire.content(files.MAX_FILE_SIZE))
    for reload in (False, True):
        assert files.read_file(path, reload=reload) == wire.content(files.MAX_FILE_SIZE)


@pytest.mark.parametrize("reload", [False, True])
def test_a_file_that_is_too_large_is_refused(reload: bool, tmp_path: Path) -> None:  # noqa: FBT001 - parametrised
    path = tmp_path / "file"
    path.write_bytes(bytes(files.MAX_FILE_SIZE + 1))
    with pytest.raises(OSError, match="larger than 4 MiB"):
        files.read_file(path, reload=reload)


def test_a_pipe_is_read_at_the_start_only(fifo: Path) -> None:
    writer = threading.Thread(target=fifo.write_bytes, args=[wire.content(200_000)], daemon=True)
    writer.start()
    assert files.read_file(fifo) == wire.content(200_000)
    with pytest.raises(OSError, match="not a regular file"):
        files.read_file(fifo, reload=True)


@pytest.mark.usefixtures("_hasty")
def test_a_pipe_that_nobody_fills_is_given_up(fifo: Path) -> None:
    with pytest.raises(TimeoutError, match="does not end within"):
        files.read_file(fifo)
    writer = os.open(fifo, os.O_RDWR)
    os.write(writer, b"a beginning")
    with pytest.raises(TimeoutError, match="does not end within"):
        files.read_file(fifo)
    os.close(writer)


def test_an_empty_device_is_an_empty_file() -> None:
    for reload in (False, True):
        assert files.read_file(os.devnull, reload=reload) == b""


@pytest.mark.usefixtures("_hasty")
def test_a_mount_that_hangs_holds_no_reload_up(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(files, "_read", lambda *_, **__: forever.wait())
    with pytest.raises(TimeoutError, match="does not answer"):
        files.read_file("/on/a/mount", reload=True)
    forever.set()


@pytest.mark.parametrize(
    "option", ["--config=/dev/zero", "--tls-cert=/dev/zero", "--config=/", "--tls-cert=/"]
)
def test_what_is_not_a_file_is_refused_in_a_sentence(option: str) -> None:
    result = run("echoserver", "--port=0", option)
    assert result.returncode == 2
    reason = "larger than 4 MiB" if "zero" in option else "Is a directory"
    assert reason in sentence(result)


@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.parametrize("replaced", ["config", "tls_cert"])
def test_a_pipe_in_the_place_of_a_file_holds_no_reload_up(
    replaced: str, processes: int | None, tmp_path: Path
) -> None:
    paths = {"config": tmp_path / "server.toml", "tls_cert": tmp_path / "server.pem"}
    paths["config"].write_text("")
    paths["tls_cert"].write_bytes(Path(SERVERS.issue()).read_bytes())
    with serving(
        "selector",
        arguments=["--config", str(paths["config"])],
        tls_cert=paths["tls_cert"],
        workers=processes,
    ) as server:
        paths[replaced].unlink()
        os.mkfifo(paths[replaced])
        server.process.send_signal(signal.SIGHUP)
        event = {"config": "reload_failed", "tls_cert": "certificate_not_reloaded"}[replaced]
        assert wire.eventually(lambda: inspection.events(server, event))
        assert "not a regular file" in inspection.events(server, event)[0]["reason"]
        if replaced == "tls_cert":
            assert wire.eventually(lambda: inspection.events(server, "reloaded"))
        assert server.stop() == 0


def test_process_substitution(tmp_path: Path) -> None:
    """A shell passes secrets by a pipe: certificate and key may come in one."""
    port = free_port()
    script = 'exec "$0" --config <(echo "port = $1") --tls-cert <(cat "$2")'
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        Child(
            ["bash", "-c", script, command("echoserver"), str(port), SERVERS.issue()], stderr=stderr
        ) as process,
    ):
        await_listening(port, process)
        assert wire.eventually(lambda: '"listening"' in log.read_text())
        process.send_signal(signal.SIGHUP)
        assert wire.eventually(lambda: "reload_failed" in log.read_text())
        process.terminate()
        assert process.wait(20) == 0
