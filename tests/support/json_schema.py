"""`docs/result.schema.json`, made from the types in `loadtest.results.schema`.

    python -m tests.support.json_schema > docs/result.schema.json

A dictionary's docstring, and the text under a key, become descriptions.
"""

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Mapping
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from loadtest.results.document import SCHEMA
from loadtest.results.schema import Document

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of what `echoload run` and `compare` save."""
    definitions: dict[str, Any] = {}
    whole = _of(Document, definitions)
    definitions["Document"]["properties"]["schema"] = {"const": SCHEMA}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What echoload run and echoload compare save with --json",
        **whole,
        "$defs": dict(sorted(definitions.items())),
    }


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type; dictionaries are defined once, and referred to."""
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if kind is object:
        return {}
    if is_typeddict(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # while it is made, for one that holds itself
            definitions[kind.__name__] = _dictionary(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    return _container(get_origin(kind), get_args(kind), definitions)


def _container(origin: Any, inner: tuple[Any, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type that is made of others."""
    each = [_of(one, definitions) for one in inner if one is not Ellipsis]
    if origin is NotRequired:
        return each[0]
    if origin in {list, tuple}:
        return {"type": "array", "items": each[0]}
    if origin in {dict, Mapping}:
        return {"type": "object", "additionalProperties": each[1]}
    assert origin in {Union, types.UnionType}, origin
    if all(one.keys() == {"type"} for one in each):
        return {"type": [one["type"] for one in each]}
    return {"anyOf": each}


def _dictionary(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    about = _texts(kind)
    return {
        "type": "object",
        "description": inspect.getdoc(kind),
        "properties": {
            name: _of(hint, definitions) | ({"description": about[name]} if name in about else {})
            for name, hint in get_type_hints(kind, include_extras=True).items()
        },
        "required": sorted(kind.__required_keys__),
    }


def _texts(kind: Any) -> dict[str, str]:
    """Return the text under each key that has one."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for line, after in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[line.target.id] = str(after.value.value)
    return found


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
