"""Requests of APIs that others defined: what may be null, and that their schemas say so."""

from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from api.compat.dialect import dialects, load
from shared.openai.responses import ResponseRequest
from shared.vocabulary import Shape, WireShape


def shapes(base: type[Shape]) -> list[type[Shape]]:
    return [shape for sub in base.__subclasses__() for shape in (sub, *shapes(sub))]


for dialect in dialects():
    for router in dialect.routers:
        load(router)
SHAPES = sorted(shapes(WireShape), key=lambda shape: shape.__qualname__)


def allows_null(schema: Any, shape: dict[str, Any]) -> bool:
    validator = jsonschema.Draft202012Validator({**schema, "$defs": shape.get("$defs", {})})
    return bool(validator.is_valid(None))


def wrong_fields(shape: type[Shape], values: dict[str, Any]) -> set[str]:
    try:
        shape.model_validate(values)
    except ValidationError as error:
        return {str(entry["loc"][0]) for entry in error.errors() if entry["loc"]}
    return set()


def test_there_are_shapes_to_check() -> None:
    assert len(SHAPES) > 60


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__qualname__)
def test_fields_that_are_not_required_may_be_null(shape: type[Shape]) -> None:
    schema = shape.model_json_schema()
    required = set(schema.get("required", ()))

    for name, field in schema.get("properties", {}).items():
        if name not in required:
            assert allows_null(field, schema), name
    optional = {name: None for name in schema.get("properties", {}) if name not in required}
    assert wrong_fields(shape, optional) <= required


def test_a_field_that_is_required_may_not_be_null() -> None:
    schema = ResponseRequest.model_json_schema()["$defs"]["MessageItem"]

    assert schema["properties"]["role"]["type"] == "string"
    assert schema["properties"]["type"]["anyOf"][-1] == {"type": "null"}
