"""Servers with metrics or an access log, and what stands there."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

import echoserver
from tests.support import inspection, wire
from tests.support.launching import serving


@contextmanager
def monitored(
    backend: str = "thread", **settings: Any
) -> Iterator[tuple[echoserver.SpawnedServer, str]]:
    with serving(backend, metrics="127.0.0.1:0", **settings) as server:
        port = inspection.events(server, "listening")[0]["metrics_port"]
        yield server, f"http://127.0.0.1:{port}"


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=wire.patience) as answer:  # noqa: S310 - http
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(base: str) -> dict[str, float]:
    """Return the sum of each metric over workers; with a label, as ``name/label``."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(fetch(f"{base}/metrics")[1]):
        for sample in family.samples:
            rest = [value for key, value in sample.labels.items() if key != "worker"]
            name = "/".join([sample.name.removeprefix("echoserver_"), *rest])
            found[name] = found.get(name, 0) + sample.value
    return found


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
