"""OpenAI's published description, where SLUICE_OPENAPI_DESCRIPTION names its file (YAML)."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

PATH = os.environ.get("SLUICE_OPENAPI_DESCRIPTION")
"""Read when this is imported: no setting reaches a test."""


def valid(value: Any, name: str) -> None:
    """Whether a value is what the description calls by this name; nothing without a description."""
    if PATH is None:
        return
    errors = sorted(_validator(name).iter_errors(value), key=lambda error: len(error.path))
    assert not errors, f"{name} at {list(errors[0].path)}: {errors[0].message[:2000]}"


@cache
def _registry() -> Registry[Any]:
    assert PATH is not None
    document = _with_nulls(yaml.load(Path(PATH).read_text(), Loader=yaml.CSafeLoader))
    for name, schema in document["components"]["schemas"].items():
        if schema.get("$recursiveAnchor"):
            _name_recursion(schema, f"urn:openai#/components/schemas/{name}")
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry: Registry[Any] = Registry()
    filled: Registry[Any] = registry.with_resource("urn:openai", resource)
    return filled


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"urn:openai#/components/schemas/{name}"}, registry=_registry()
    )


def _name_recursion(schema: Any, to: str) -> None:
    """Drafts of JSON Schema after 2019 know no `$recursiveRef`, which this description has."""
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            _name_recursion(part, to)
    if isinstance(schema, dict) and schema.pop("$recursiveRef", None):
        schema["$ref"] = to


def _with_nulls(schema: Any) -> Any:
    """`nullable`, which OpenAPI 3.1 knows no more and this description still has, said in JSON
    Schema."""
    if isinstance(schema, list):
        return [_with_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: _with_nulls(part) for name, part in schema.items()}
    if parts.pop("nullable", None) is not True:
        return parts
    return {"anyOf": [parts, {"type": "null"}]}
