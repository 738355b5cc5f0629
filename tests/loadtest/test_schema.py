"""What is saved is what `docs/result.schema.json` says."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.loadtest.test_compare import QUICK
from tests.support import json_schema
from tests.support.launching import run
from tests.support.misbehaving import server as misbehaving

PUBLISHED = Path(__file__).parents[2] / "docs" / "result.schema.json"


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that also refuses what it does not mention."""
    found = copy.deepcopy(schema)
    for definition in found["$defs"].values():
        definition["additionalProperties"] = False
    return found


def test_the_published_schema_is_that_of_the_types() -> None:
    made = json.dumps(json_schema.schema(), indent=2) + "\n"
    assert PUBLISHED.read_text(encoding="utf-8") == made, (
        "python -m tests.support.json_schema > docs/result.schema.json"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--backends", "thread,selector", "--sweep", "connections=1,2"],
        ["--backends", "thread", "--workers", "2", "-R", "500", "--rounds", "2", "-c", "2"],
    ],
    ids=["sweep", "rate"],
)
def test_a_comparison(words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = run("echoload", "compare", *QUICK, *words, "--json", str(file))
    assert result.returncode == 0, result.stderr
    jsonschema.validate(json.loads(file.read_text()), closed(json_schema.schema()))


def test_a_run_with_errors(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with misbehaving(lambda data, _: data.upper()) as (host, port):
        result = run("echoload", "run", f"{host}:{port}", "-q", "-n", "9", "--json", str(file))
    assert result.returncode == 4
    document = json.loads(file.read_text())
    jsonschema.validate(document, closed(json_schema.schema()))
    document["results"][0]["verified"] = "none"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema.schema())
