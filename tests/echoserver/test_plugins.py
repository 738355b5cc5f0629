"""Plugins as other people write them: the page that teaches it, taken at its word."""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support import pace, wire
from tests.support.launching import await_listening, free_port, run, shell, terminate

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "write-a-backend.md"


def files_of_the_page() -> dict[str, str]:
    """Return the files that the page shows: each begins with its name in a comment."""
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the page's package in it; our packages are on its path."""
    pytest.importorskip("trio")
    folder = tmp_path_factory.mktemp("plugin")
    package = folder / "package"
    for name, text in files_of_the_page().items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(where, "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    installed = subprocess.run(
        [
            *(python, "-m", "pip", "install", "--no-index", "--no-deps"),
            *("--no-build-isolation", "--disable-pip-version-check", package),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return python


def in_environment(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *words], capture_output=True, text=True, timeout=170, check=False, cwd=ROOT
    )


def test_the_page_has_all_its_files() -> None:
    assert set(files_of_the_page()) == {
        "threads.py",
        "accepting.py",
        "src/echoserver_trio.py",
        "pyproject.toml",
    }


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(120)
def test_an_installed_plugin_is_a_backend_like_any_other(environment: Path) -> None:
    listed = in_environment(environment, "-P", "-m", "echoserver", "--list-backends")
    assert re.search(r"^trio +yes +.*a task per client", listed.stdout, re.MULTILINE), listed.stderr
    script = "import sys; from echoserver.launch import echoload; sys.argv[0] = 'x'; echoload()"
    compared = in_environment(
        environment,
        *("-P", "-c", script, "compare", "--backends", "trio,thread", "--rounds", "1"),
        *("-c", "20", "-d", f"{0.3 * pace.slowness():.1f}s", "--pin", "off"),
    )
    assert compared.returncode == 0, compared.stderr
    assert re.search(r"trio.* 20 of 20 ", compared.stdout)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "selection",
    [
        pytest.param(
            ["-m", "core", "-k", "trio and echo"], marks=[pytest.mark.slow, pytest.mark.ci]
        ),
        pytest.param(["-m", ""], marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
    ids=["core", "all"],
)
def test_the_trio_backend_conforms(environment: Path, selection: list[str]) -> None:
    result = in_environment(
        environment,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "tests/conformance"),
        *("--backend", "trio", *selection),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@pytest.mark.ci
@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("def __init__(self, x): pass", 3, "failed: error TypeError"),
        ("def serve(self, listener, service): raise RuntimeError('no')", 3, "reason no"),
        ("def serve(self, listener, service): raise SystemExit(0)", 3, "error SystemExit"),
        ("def serve(self, listener, service): return", 3, "stopped serving without having been"),
        ("concurrency = classmethod(lambda cls, config: 1 // 0)", 2, "failed with ZeroDivision"),
        ("concurrency = classmethod(lambda cls, config: 'two')", 2, "not 'two'"),
        ("concurrency = classmethod(lambda cls, config: 0)", 2, "a whole number from 1, not 0"),
    ],
    ids=["constructor", "raises", "leaves", "returns", "concurrency", "words", "nobody"],
)
def test_a_backend_that_fails_is_one_sentence(
    body: str, code: int, says: str, tmp_path: Path
) -> None:
    (tmp_path / "odd.py").write_text(
        "from echoserver.backends.thread import ThreadBackend\n"
        f"class Odd(ThreadBackend):\n    {body}\n"
    )
    result = run("echoserver", "--port", "0", "--backend", f"{tmp_path}/odd.py:Odd")
    assert result.returncode == code, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("echoserver: --backend: ")
    assert says in last
    assert "Traceback" not in result.stderr


def test_the_suite_refuses_what_is_no_backend() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/conformance", "--backend", "nope"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 4
    assert "no backend named 'nope'" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_plugin_may_be_named_like_the_package_it_needs(tmp_path: Path) -> None:
    (tmp_path / "absent_backend.py").write_text("import absent\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    for spec in (f"{tmp_path}/absent_backend.py:X", "absent_backend:X"):
        result = run("echoserver", "--backend", spec, env=environment)
        assert result.returncode == 2
        assert "needs the package 'absent'" in result.stderr


LOSES_AN_INTERRUPTION = """
import signal

pthread_kill, lost = signal.pthread_kill, []

def lose_the_first(thread, number):
    if lost:
        pthread_kill(thread, number)
    lost.append(number)

signal.pthread_kill = lose_the_first

class Event(threading.Event):
    def wait(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # others get it
        return super().wait()

threading.Event = Event
"""


def test_a_main_thread_that_sleeps_on_hears_of_a_signal_again(tmp_path: Path) -> None:
    """It may be about to wait for a lock just when it is interrupted, and not notice."""
    file = tmp_path / "accepting.py"
    file.write_text(files_of_the_page()["accepting.py"] + LOSES_AN_INTERRUPTION)
    port = free_port()
    arguments = ["--backend", f"{file}:AcceptingThreads", "--port", str(port)]
    with shell('exec "$@" 2>/dev/null', "echoserver", *arguments) as process:
        assert wire.served(await_listening(port, process))
        assert terminate(process) == 0


@pytest.mark.parametrize("name", ["threads.py:Threads", "accepting.py:AcceptingThreads"])
def test_the_blocking_ones_serve(name: str, tmp_path: Path) -> None:
    file = name.partition(":")[0]
    (tmp_path / file).write_text(files_of_the_page()[file])
    port = free_port()
    arguments = ["--backend", f"{tmp_path}/{name}", "--port", str(port)]
    with shell('exec "$@" 2>/dev/null', "echoserver", *arguments) as process:
        assert wire.served(await_listening(port, process))
        assert terminate(process) == 0


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(400)
def test_the_one_whose_threads_accept_conforms(tmp_path: Path) -> None:
    (tmp_path / "accepting.py").write_text(files_of_the_page()["accepting.py"])
    backend = f"{tmp_path}/accepting.py:AcceptingThreads"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "tests/conformance"]
    result = subprocess.run(
        [sys.executable, *words, "-m", "core", "--backend", backend],
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
