"""The command `echoload check`: what it is asked, what it answers, and how it ends."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

import echoserver
from tests.echoserver.test_cli import sentence
from tests.support import pace, preforked
from tests.support.checking import backend_words, check, failed, specimen, status
from tests.support.launching import free_port, run
from tests.support.misbehaving import server

GOOD = backend_words("thread", None)


def _check(*words: str, **options: object) -> tuple[int, str, str]:
    done = run("echoload", "check", *words, **options)
    return done.returncode, done.stdout, done.stderr


def test_all_checks_are_listed_and_explained() -> None:
    code, listed, _ = _check("--list")
    assert code == 0
    names = re.findall(r"^  ([LSCN]\d) +(\d+) points", listed, re.MULTILINE)
    wanted = [f"L{n}" for n in range(1, 5)] + [f"S{n}" for n in range(1, 7)]
    wanted += [f"C{n}" for n in range(1, 8)] + [f"N{n}" for n in range(1, 10)]
    assert [name for name, _ in names] == wanted
    assert sum(int(weight) for name, weight in names if name != "N9") == 100
    for name in ("L1", "C7", "N9"):
        code, explained, _ = _check("--explain", name.lower())
        assert code == 0
        assert explained.startswith(f"{name} ")
        for part in ("Why:", "What is done:", "Passed when:", "Where to look:"):
            assert part in explained


def test_a_good_server_passes_and_the_exit_code_says_so() -> None:
    code, out, err = _check("--only", "L1,L2,S*", "--", *GOOD)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("(expected: echo)")
    assert lines[2] == ":) L1 starts and accepts a client"
    assert re.fullmatch(r"8 passed: 33 of 33 points \(seed 1, \d+\.\d s\)", lines[-1])
    assert "\x1b" not in out


def test_a_bad_server_fails_and_the_exit_code_says_so() -> None:
    code, out, _ = _check("--only", "L1,L2,S1", "--", *specimen("decodes_chunks"))
    assert code == 1
    assert ":( S1 " in out
    assert "where to look: " in out
    assert "owed  00000078  78 79 7a 7b 7c 7d 7e 7f  |xyz{|}~.|" in out
    assert "came  00000080  ef bf bd ef bf bd ef bf  |........|" in out


@pytest.mark.ci
def test_a_server_that_runs_is_graded_but_for_its_process() -> None:
    with echoserver.spawn(backend="selector") as running:
        done = run("echoload", "check", f"127.0.0.1:{running.port}", "--format", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    skipped = {one["id"]: one for one in found["checks"] if one["status"] == "skipped"}
    assert skipped.keys() == {"L3", "L4", "C6", "C7", "N9"}
    assert all("needs the server's process" in one["message"] for one in skipped.values())
    assert found["max_score"] == 82
    assert found["score"] == 82


def test_where_nothing_listens_nothing_is_checked() -> None:
    code, out, _ = _check(f"127.0.0.1:{free_port()}", "--timeout", "1s")
    assert code == 1
    assert "Client A cannot connect: Connection refused." in out
    assert "\n:| 20 checks (after L1, the server did not answer any more): L2, S1" in out
    assert "\n:| 5 checks (it needs the server's process" in out


def test_a_server_that_dies_in_attach_mode_ends_the_run() -> None:
    dead = False

    def answer(data: bytes, _number: int) -> bytes | None:
        nonlocal dead
        dead = dead or b"\x7f" in data  # which S1 sends
        return None if dead else data

    with server(answer, hard=True) as (host, port):
        code, out, _ = _check(f"{host}:{port}", "--only", "L1,L2,S1,S2,S3")
    assert code == 1
    assert ":( S1 " in out
    assert out.count("(after S1, the server did not answer any more)") == 2


@pytest.mark.slow
@pytest.mark.ci
def test_upper_and_lines_are_expected_when_asked_for() -> None:
    upper = [*GOOD, "--handler", "upper"]
    assert failed(check(upper, "--expect", "upper", "--only", "L1,L2,S*,C1,N7")) == {}
    wrong = failed(check(upper, "--only", "L1,L2"))
    assert wrong["L2"] == (
        "this is an echo server of another kind: to b'hello\\n' it answers b'HELLO\\n'; if that is "
        "the assignment, see --expect"
    )
    lines = specimen("waits_for_newline")
    found = check(lines, "--expect", "line", "--only", "L1,L2,S*,C1,N3,N6")
    assert failed(found) == {}
    assert status(found, "S3") == "skipped"


def test_port_comes_by_the_environment_too() -> None:
    program = (
        "import os, socketserver as s\n"
        "class H(s.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while data := self.request.recv(99): self.request.sendall(data)\n"
        "s.ThreadingTCPServer((os.environ['HOST'], int(os.environ['PORT'])), H).serve_forever()\n"
    )
    assert failed(check([sys.executable, "-c", program], "--only", "L1,L2,S1")) == {}


@pytest.mark.ci
def test_a_build_runs_first_and_its_failure_is_explained(tmp_path: Path) -> None:
    made = tmp_path / "made.py"
    source = specimen("decodes_chunks")[1]
    words = [sys.executable, str(made), "{port}"]
    found = check(words, "--only", "L1,L2", "--build", f"cp {source} {made}")
    assert failed(found) == {}
    found = check(words, "--only", "L1,S1", "--build", "echo no rule; exit 2")
    assert failed(found)["L1"] == (
        "the build, 'echo no rule; exit 2', failed: it ended with exit code 2"
    )
    assert found["checks"][0]["evidence"]["output"] == ["no rule"]


def test_a_command_that_does_not_exist_is_named() -> None:
    assert failed(check(["/no/such/server"], "--only", "L1")) == {
        "L1": "cannot start /no/such/server: No such file or directory"
    }


@pytest.mark.ci
def test_a_server_on_another_port_is_told_where_it_listens() -> None:
    message = failed(check(specimen("another_port"), "--only", "L1", "--timeout", "1s"))["L1"]
    assert re.search(
        r"nothing listened on 127\.0\.0\.1:\d+; it listens on 127\.0\.0\.1:\d+", message
    )


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("http_server", "it answers in HTTP"),
        ("chargen", "before it was asked anything"),
        ("silent", "does not come back"),
    ],
)
def test_what_is_no_echo_server_is_told_soon(name: str, verdict: str) -> None:
    begun = time.monotonic()
    found = check(specimen(name), "--timeout", "2s")
    assert pace.within(time.monotonic() - begun, 20)  # two, on a machine that does nothing else
    assert failed(found).keys() == {"L2"}
    assert failed(found)["L2"].startswith("this is not an echo server: ")
    assert verdict in failed(found)["L2"]
    others = [one for one in found["checks"] if one["id"] not in {"L1", "L2"}]
    assert {one["message"] for one in others} == {"L2 found that this is not an echo server"}


def test_weights_are_the_instructors(tmp_path: Path) -> None:
    weights = tmp_path / "weights.toml"
    weights.write_text("[weights]\nS1 = 40\nL1 = 0\nL2 = 2.5\n")
    found = check(specimen("decodes_chunks"), "--only", "L1,L2,S1", "--weights", str(weights))
    assert (found["score"], found["max_score"]) == (2.5, 42.5)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("C99 = 1", "there is no check C99"),
        ("C1 = -1", "C1 = -1 is not a number from 0 to 1,000,000"),
        ("C1 = true", "C1 = True is not a number from 0 to"),
        ("C1 = nan", "C1 = nan is not a number from 0 to"),
        ("C1 =", "is not TOML"),
        ("C1 = 1" + "0" * 400, "is not a number from 0 to 1,000,000"),
        ("weights = 3", "weights is to be a table"),
    ],
)
def test_bad_weights_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    weights = tmp_path / "weights.toml"
    weights.write_text(content)
    done = preforked.run("echoload", "check", "--weights", str(weights), "--", "x")
    assert done.returncode == 2
    assert complaint in sentence(done)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "what is to be graded? HOST:PORT, or -- and the command that starts a server"),
        (["--", ""], "the command to start is empty"),
        (["--only", "X1", "--", "x"], "--only: 'X1' is not a check; see --list"),
        (["--skip", "*", "--", "x"], "--only and --skip leave no check to run"),
        (["--explain", "Q"], "--explain: there is no check Q; see --list"),
        (["--timeout", "0", "--", "x"], "--timeout must be more than 0"),
        (["--memory", "1G", "127.0.0.1:9"], "are for a server started here"),
        (["no.such.host.invalid:9999"], "cannot resolve the host 'no.such.host.invalid'"),
        (["127.0.0.1:99999"], "'127.0.0.1:99999' is not HOST:PORT"),
        (["--user", "no-such-user", "--", "x"], "there is no user no-such-user on this machine"),
        (["--output", "/no/such/folder/x", "--", "x"], "--output: cannot write /no/such/folder/x"),
        (["--format", "tap", "--format", "json", "--", "x"], "only one of --format tap and json"),
        (
            ["--format", "tap", "--output", "/dev/null", "--output", "/dev/null", "--", "x"],
            "--output /dev/null was given twice",
        ),
    ],
)
def test_bad_input_gets_one_sentence(words: list[str], complaint: str) -> None:
    done = preforked.run("echoload", "check", *words)
    assert done.returncode == 2
    assert complaint in sentence(done)


def test_several_formats_go_where_they_are_sent(tmp_path: Path) -> None:
    tap, text, page = tmp_path / "x.tap", tmp_path / "x.txt", tmp_path / "x.html"
    code, out, _ = _check(
        *("--only", "L1", "--format", "tap", "--output", str(tap), "--output", str(page)),
        *("--format", "html", "--format", "text", "--output", str(text), "--format", "json"),
        *("--", *GOOD),
    )
    assert code == 0
    assert json.loads(out)["schema"] == "echoload-check/1"  # the one that no file followed
    assert tap.read_text().startswith("TAP version 14\n1..1\nok 1 - L1 ")
    assert page.read_text().startswith("<!doctype html>")
    assert text.read_text().endswith(" s)\n")


def test_what_cannot_be_saved_is_told_and_the_rest_is(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    code, out, err = _check(
        *("--only", "L1", "--format", "json", "--output", str(good)),
        *("--format", "tap", "--output", "/dev/full", "--", *GOOD),
    )
    assert code == 2
    assert ":) L1" in out
    assert "cannot write /dev/full: No space left on device" in err
    assert status(json.loads(good.read_text()), "L1") == "passed"


@pytest.mark.ci
def test_repeated_checks_pass_only_if_they_do_so_every_time() -> None:
    found = check(specimen("decodes_chunks"), "--only", "L1,S1,S3", "--repeat", "3")
    assert found["repeat"] == 3
    assert status(found, "S3") == "passed"
    assert failed(found)["S1"].endswith("(in 3 of 3 times)")


@pytest.mark.ci
def test_the_same_seed_says_the_same() -> None:
    def sent(seed: str) -> list[str]:
        options = ["--only", "S5", "--seed", seed, "--timeout", "1s"]
        found = check(specimen("extra_byte"), *options)
        return [
            line.partition(" s  ")[2] for line in found["checks"][0]["evidence"]["timeline"][:2]
        ]

    assert sent("5") == sent("5") != sent("6")


@pytest.mark.ci
def test_when_time_is_up_the_rest_counts_as_missed() -> None:
    code, out, _ = _check("--total-timeout", "4s", "--timeout", "2s", "--", *specimen("iterative"))
    assert code == 1
    assert "the time for everything (--total-timeout) was over" in out
    assert re.search(r" of 100 points \(seed 1, \d+\.\d s\)", out)


@pytest.mark.ci
def test_declared_concurrency_is_no_failure() -> None:
    found = check(specimen("iterative"), "--concurrency", "1", "--only", "L*,N1,N2,N3,N4")
    assert failed(found) == {}
    assert [status(found, name) for name in ("N1", "N2", "N3")] == ["skipped"] * 3
    assert found["max_score"] == 16 + 5
    found = check(specimen("pool_of_eight"), "--concurrency", "8", "--only", "L1,L2,N4")
    assert failed(found) == {}


# -- the selection ---------------------------------------------------------------------------------

QUICK = "L1,L2,S1,S2,S3,S4,C1,C2"


@pytest.mark.ci
@pytest.mark.parametrize("name", ["greets", "silent", "one_client", "loses_output_at_half_close"])
def test_what_is_selected_changes_no_verdict(name: str) -> None:
    """With S1 alone, a server that greets failed it; with all others, it passed."""
    options = ("--timeout", "1s")
    together = check(specimen(name), "--only", QUICK, *options)
    for one in together["checks"]:
        alone = check(specimen(name), "--only", one["id"], *options)
        assert status(alone, one["id"]) == one["status"], one["id"]


def test_what_a_selected_check_needs_is_told_where_it_failed() -> None:
    found = check(["false"], "--only", "S1")
    (one,) = found["checks"]
    assert one["status"] == "skipped"
    assert one["message"].startswith("it needs L1, which failed: ")
    assert "ended with exit code 1" in one["message"]


# -- memory ----------------------------------------------------------------------------------------

GROWS = """
import socket, sys, threading

kept = []

def answer(client):
    with client:
        try:
            while data := client.recv(65536):
                if len(data) > 4096 and len(kept) < 40:
                    kept.append(b"x" * (1 << 20))
                client.sendall(data)
        except OSError:
            pass

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
while True:
    client, _ = listener.accept()
    threading.Thread(target=answer, args=(client,), daemon=True).start()
"""


@pytest.mark.ci
def test_a_heap_that_grows_is_not_taken_for_a_buffer(tmp_path: Path) -> None:
    """As that of a runtime with a collector does, while the server stops reading as it ought to."""
    file = tmp_path / "server.py"
    file.write_text(GROWS)
    found = check([sys.executable, str(file), "{port}"], "--only", "N6")
    assert status(found, "N6") == "passed"


@pytest.mark.ci
def test_a_server_that_takes_all_is_told_how_much() -> None:
    message = failed(check(specimen("buffers_without_bound"), "--only", "N6"))["N6"]
    assert re.search(r"sent \d+ MiB and read nothing, and the server took it all", message)
    assert "its memory grew by" in message
