"""Where settings come from, and what is said when one is wrong."""

import json
import os
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

import echoserver
from echoserver.config import option_name, settings
from echoserver.units import parse_duration
from tests.support import preforked, wire
from tests.support.launching import command


def test_order_option_environment_file_default(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1001\nbackend = "pool"\npool-size = 3\nhandler = "upper"\n')
    environment = {"ECHOSERVER_PORT": "1002", "ECHOSERVER_BACKEND": "gevent"}
    config = echoserver.load_config({"port": "1003"}, environment, file)
    assert (config.port, config.source("port")) == (1003, "--port")
    assert (config.backend, config.source("backend")) == ("gevent", "ECHOSERVER_BACKEND")
    assert (config.pool_size, config.source("pool_size")) == (3, f"{file}: pool-size")
    assert config.handler == "upper"
    assert (config.host, config.source("host")) == (("127.0.0.1",), "the default --host")


def test_every_option_is_a_variable_and_a_key(tmp_path: Path) -> None:
    values: dict[str, str] = {
        "backend": "gevent",
        "handler": "upper",
        "handler_option": "key=value",
        "workers": "7",
        "affinity": "auto",
        "host": "::1",
        "port": "7",
        "socket_mode": "660",
        "backlog": "7",
        "pool_size": "7",
        "max_connections": "7",
        "max_connections_per_ip": "7",
        "allow": "192.0.2.0/24,::1",
        "deny": "192.0.2.7",
        "proxy_protocol": "on",
        "proxy_from": "192.0.2.1",
        "overload": "reject",
        "idle_timeout": "7.5",
        "write_timeout": "7.5",
        "drain_timeout": "7.5",
        "handshake_timeout": "7.5",
        "tls_cert": "cert.pem",
        "tls_key": "key.pem",
        "tls_client_ca": "ca.pem",
        "user": "nobody",
        "group": "nogroup",
        "metrics": "[::1]:7",
        "access_log": "-",
        "log_level": "error",
        "log_format": "console",
    }
    assert set(values) == {s.name for s in settings() if not s.hidden}
    environment = {f"ECHOSERVER_{name.upper()}": value for name, value in values.items()}
    file = tmp_path / "all.toml"
    written = {
        name: value
        if value.replace(".", "", 1).isdigit() and name != "socket_mode"
        else repr(value)
        for name, value in values.items()
    }
    file.write_text("\n".join(f"{option_name(name)[2:]} = {x}" for name, x in written.items()))
    from_environment = echoserver.load_config(environment=environment)
    from_file = echoserver.load_config(environment={"ECHOSERVER_CONFIG": str(file)})
    assert from_environment == from_file
    assert from_file != echoserver.Config()
    for name, value in values.items():
        several = {"handler_option", "host", "allow", "deny", "proxy_protocol", "proxy_from"}
        if name not in several:
            assert str(getattr(from_file, name)) == value
    assert from_file.host == ("::1",)
    assert from_file.handler_option == (("key", "value"),)
    assert list(map(str, from_file.allow)) == ["192.0.2.0/24", "::1/128"]
    assert from_file.proxy_protocol


def test_empty_variable_is_no_setting() -> None:
    assert echoserver.load_config(environment={"ECHOSERVER_PORT": ""}).port == 9999


def test_kubernetes_service_variable_is_ignored_with_a_warning() -> None:
    environment = {
        "ECHOSERVER_PORT": "tcp://10.0.0.1:9999",
        "ECHOSERVER_SERVICE_HOST": "10.0.0.1",
        "ECHOSERVER_PORT_9999_TCP": "tcp://10.0.0.1:9999",
    }
    config = echoserver.load_config(environment=environment)
    assert config.port == 9999
    assert "Kubernetes" in config.warnings[0]


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("ECHOSERVER_PROT", "; did you mean 'ECHOSERVER_PORT'?"),
        ("ECHOSERVER_MAX_CONNECTION", "; did you mean 'ECHOSERVER_MAX_CONNECTIONS'?"),
        ("ECHOSERVER_TLSCERT", "; did you mean 'ECHOSERVER_TLS_CERT'?"),
        ("ECHOSERVER_CONFIG_FILE", "; did you mean 'ECHOSERVER_CONFIG'?"),
        ("ECHOSERVER_port", "; did you mean 'ECHOSERVER_PORT'?"),
        ("ECHOSERVER_XYZZY", ""),
    ],
)
def test_unknown_variables_are_warned_of(variable: str, hint: str) -> None:
    config = echoserver.load_config(environment={variable: "7", "ECHOSERVER_HOST": "::1"})
    assert config.host == ("::1",)
    assert config.warnings == (f"{variable} is not a setting{hint}",)


def test_what_kubernetes_injects_is_no_mistake() -> None:
    """Of a service that is called echoserver, and of one that is called echoserver-metrics."""
    injected: dict[str, str] = {}
    for service, port in (("ECHOSERVER", "9999"), ("ECHOSERVER_METRICS", "9100")):
        url, prefix = f"tcp://10.0.0.1:{port}", f"{service}_PORT_{port}_TCP"
        injected |= {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": port,
            f"{service}_SERVICE_PORT_ECHO_TLS": port,
            f"{service}_PORT": url,
            prefix: url,
            f"{prefix}_PROTO": "tcp",
            f"{prefix}_PORT": port,
            f"{prefix}_ADDR": "10.0.0.1",
        }
    config = echoserver.load_config(environment=injected)
    (warning,) = config.warnings
    assert warning.startswith("ECHOSERVER_PORT='tcp://10.0.0.1:9999' looks like")
    assert config.port == 9999


def test_variables_of_others_and_empty_ones_are_not_warned_of() -> None:
    found = {"ECHOCLIENT_PROT": "1", "ECHOSERVER_PROT": "", "ECHOSERVERS": "1", "PATH": "/"}
    assert echoserver.load_config(environment=found).warnings == ()


def test_the_warning_is_logged() -> None:
    process = subprocess.Popen(
        [command("echoserver"), "--host", "::1", "--log-format", "json"],
        env={**os.environ, "ECHOSERVER_PORT": "tcp://10.0.0.1:9999"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as log:
        events = [json.loads(log.readline()) for _ in range(2)]
        process.terminate()
        assert process.wait(10) == 0
    assert {event["event"] for event in events} == {"setting_ignored", "listening"}
    assert "ECHOSERVER_PORT" in next(e["reason"] for e in events if "reason" in e)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port = '80'", "port must be a whole number, not the text"),
        ("port = 99999", "port must be a whole number from 0 to 65535, not 99999"),
        ("port = true", "port must be a whole number from 0 to 65535, not True"),
        ("port = 80.5", "port must be"),
        ("backend = 1", "backend must be a non-empty"),
        ("idle-timeout = true", "idle-timeout must be"),
        ("idle-timeout = []", "idle-timeout must be"),
        ("prot = 1", "unknown setting 'prot'; did you mean 'port'?"),
        ("lifeline = 3", "unknown setting 'lifeline'"),
        ("[server]\nport = 1", "unknown setting 'server'"),
        ("pool-size = 1\npool_size = 2", "set twice"),
        ("port = ", "is not valid TOML"),
    ],
)
def test_a_mistyped_file_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    result = preforked.run("echoserver", "--config", str(file))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert str(file) in result.stderr
    assert says in result.stderr


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(echoserver.ConfigError, match="not UTF-8"):
        echoserver.load_config(environment={}, file=file)
    with pytest.raises(echoserver.ConfigError, match="Is a directory"):
        echoserver.load_config(environment={}, file=tmp_path)


def test_variables_are_named() -> None:
    with pytest.raises(echoserver.ConfigError, match=r"^ECHOSERVER_BACKLOG must be .*'many'$"):
        echoserver.load_config(environment={"ECHOSERVER_BACKLOG": "many"})


def test_pool_size_in_the_environment_contradicts_nothing() -> None:
    """Only beside --backend is it a mistake: a file may hold settings for several backends."""
    config = echoserver.load_config(environment={"ECHOSERVER_POOL_SIZE": "3"})
    echoserver.EchoServer(config)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("5", 5), ("2.5", 2.5), (".5", 0.5), (3, 3), (0, 0)),
        *(("10us", 1e-5), ("500ms", 0.5), ("5s", 5), ("2m", 120), ("1h", 3600)),
        *(("1m30s", 90), ("1h2m3.5s", 3723.5), ("1m 30s", 90), ("1s500ms", 1.5)),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", "-1", "1e9", "5 days", "nan", "inf", "٣", float("nan")),
        *("30s1m", "1m1m", "1.5m30s", "1m30", "1m30s and more"),
    ],
)
def test_no_durations(text: str | float) -> None:
    with pytest.raises(ValueError, match="500ms"):
        parse_duration(text)


def test_zero_turns_a_timeout_off() -> None:
    with echoserver.spawn(idle_timeout=0, write_timeout=0, drain_timeout=0) as server:
        assert wire.served(server.address)
    assert server.process.returncode == 0


def test_a_file_may_say_auto_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('workers = "auto"\naffinity = [0, 2]\nhandler-option = ["a=1", "b=2"]\n')
    config = echoserver.load_config(file=file, environment={})
    assert config.workers == "auto"
    assert config.affinity == (0, 2)
    assert config.handler_option == (("a", "1"), ("b", "2"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("handler-option = 5", "handler-option must be KEY=VALUE, not 5"),
        ("handler-option = true", "handler-option must be KEY=VALUE"),
        ('handler-option = [["a", "b", "c"]]', "handler-option must be KEY=VALUE"),
        ("affinity = [[0]]", "affinity must be off, auto"),
        ("affinity = {}", "affinity must be off, auto"),
        ('pool-size = "3"', "pool-size must be a whole number, not the text '3'"),
        ("[server]\nport = 1", "settings stand at the top level"),
    ],
)
def test_what_a_file_cannot_say(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text(line)
    with pytest.raises(echoserver.ConfigError, match=re.escape(says)):
        echoserver.load_config(file=tmp_path / "server.toml", environment={})


# -- whatever is typed ---------------------------------------------------------------------------

TYPED = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["-0", "1e9", "0x10", "\u0663", "auto", "on", "5s", "::/0", "[::1]:1", "=", ","]
    ),
)
NAMES = [setting.name for setting in settings() if not setting.hidden]


@given(st.sampled_from(NAMES), TYPED)
def test_a_setting_is_taken_or_named(name: str, typed: str) -> None:
    """And nothing else happens, whatever it is."""
    told = None
    try:
        config = echoserver.load_config({name: typed}, environment={})
    except echoserver.ConfigError as error:
        told = str(error)
    if told is not None:
        assert told.startswith(option_name(name))
        assert len(told.splitlines()) == 1
        return
    again = echoserver.load_config({name: getattr(config, name)}, environment={})
    assert getattr(again, name) == getattr(config, name), "what was read is read as the same"


@given(st.text(max_size=200))
def test_a_file_is_read_or_refused(text: str) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "server.toml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        told = None
        try:
            echoserver.load_config(environment={}, file=file)
        except echoserver.ConfigError as error:
            told = str(error)
        assert told is None or str(file) in told
