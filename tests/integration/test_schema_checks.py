"""The check of JSON answers by the caller's schema, which runs in processes of its own."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.errors import InvalidInput, NotJson
from workers.generation.answers import structured
from workers.generation.answers.structured import SchemaChecker

CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name", "people"],
}


@pytest.fixture(scope="module", autouse=True)
def checker() -> Iterator[SchemaChecker]:
    """With more time than any of these checks takes, however busy the machine is."""
    _checkers.append(SchemaChecker(limit_s=60, children=1))
    yield _checkers[-1]
    _checkers.pop().close()


_checkers: list[SchemaChecker] = []


def parse(text: str, schema: dict[str, Any] | None) -> Any:
    value = structured.parse(text)
    if schema is not None:
        _checkers[-1].validate(value, schema)
    return value


def refusal(text: str, schema: dict[str, Any] | None) -> str:
    with pytest.raises(NotJson) as caught:
        parse(text, schema)
    return caught.value.message


def test_what_fits_is_returned() -> None:
    seoul = {"name": "서울", "people": 9_600_000}
    assert parse(json.dumps(seoul, ensure_ascii=False), CITY) == seoul


def test_what_does_not_fit_the_schema_is_reported_with_its_location() -> None:
    message = refusal('{"people": "many"}', CITY)
    assert "at $.people: 'many' is not of type 'integer'" in message
    assert "'name' is a required property" in message
    long = refusal(json.dumps({"name": "x", "people": "y" * 9999}), CITY)
    assert len(long) < 600


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "nonsense"}, "$.type"),
        ({"properties": []}, "$.properties"),
        ({"pattern": "("}, "$.pattern"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "http://127.0.0.1:9/schema.json"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "file:///etc/passwd"),
        ({"items": {"$ref": "#/$defs/none"}}, "#/$defs/none"),
        ({"$schema": "http://example.org/other"}, "$schema"),
        ({"$schema": 7}, "$schema"),
        ({"$defs": {"a": {"const": 5}}, "$ref": "#/$defs/a/const"}, "#/$defs/a/const"),
        ({"required": ["a"], "items": {"$ref": "#/required"}}, "'#/required', which is no schema"),
        ({"$id": "http://[", "properties": {"a": {"$ref": "x"}}}, "no URI"),
        ({"parts": {"a": {"$ref": "#/none"}}, "$ref": "#/parts/a"}, "#/none"),
        ({"parts": {"a": {"type": "nonsense"}}, "$ref": "#/parts/a"}, "nonsense"),
        ({"parts": {"a": {"not": {"pattern": "("}}}, "$ref": "#/parts/a"}, "pattern"),
        (
            {"parts": {"a": {"items": {"$ref": "#/type"}}}, "type": "array", "$ref": "#/parts/a"},
            "#/type",
        ),
    ],
)
def test_a_wrong_schema_is_an_error_of_the_user(
    schema: dict[str, Any], said: str, checker: SchemaChecker
) -> None:
    with pytest.raises(InvalidInput) as caught:
        checker.check(schema)
    assert said in caught.value.message
    with pytest.raises(InvalidInput, match="response_format"):
        checker.validate({}, schema)


def test_a_number_beyond_what_can_be_checked_is_a_fault_of_the_answer(
    checker: SchemaChecker,
) -> None:
    with pytest.raises(NotJson, match="too large"):
        checker.validate(10**400, {"multipleOf": 0.1})


def test_references_may_lead_anywhere_where_a_schema_stands(checker: SchemaChecker) -> None:
    schema = {
        "components": {"id": {"type": "integer"}, "ids": {"items": {"$ref": "#/components/id"}}},
        "$ref": "#/components/ids",
    }
    checker.check(schema)
    checker.validate([1, 2], schema)
    with pytest.raises(NotJson, match=r"at \$\[1\]"):
        checker.validate([1, "b"], schema)


def test_a_schema_that_refers_to_itself() -> None:
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            }
        },
    }
    assert parse('{"kids": [{"kids": []}]}', tree) == {"kids": [{"kids": []}]}
    assert "$.kids[0].kids" in refusal('{"kids": [{"kids": 1}]}', tree)
    with pytest.raises(InvalidInput, match="without end"):
        parse("{}", {"$ref": "#"})


def test_an_older_draft_counts_where_it_is_named() -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 3,
              "exclusiveMaximum": True}  # fmt: skip
    assert parse("2", draft4) == 2
    refusal("3", draft4)


def doubling(levels: int) -> dict[str, Any]:
    """A schema of `levels` definitions, each of which refers twice to the next."""
    definitions: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {}}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 64 + "!"),
        ({"pattern": "^(가|가가|가나)*$"}, "가" * 64 + "!"),
        ({"patternProperties": {"^(a|aa)+$": {}}}, {"a" * 96 + "!": 1}),
        ({"propertyNames": {"pattern": "(x+x+)+y"}}, {"x" * 64: 1}),
        (doubling(40), {}),
        ({"items": {"anyOf": [{"pattern": "^([a-z]+)*$"}, False]}}, ["a" * 64 + "1"]),
    ],
    ids=["nested", "alternatives", "properties", "names", "references", "in items"],
)
def test_a_check_without_end_is_ended_and_the_next_one_is_done(
    schema: dict[str, Any], value: Any
) -> None:
    """Each of these would take years; the limit is CPU time of the child, not of this test."""
    checker = SchemaChecker(limit_s=0.2, children=1)
    try:
        with pytest.raises(InvalidInput, match="SLUICE_SCHEMA_CHECK_S"):
            checker.validate(value, schema)
        checker.validate({"a": 1}, {"type": "object"})
    finally:
        checker.close()


def test_memory_without_end_is_an_error_too() -> None:
    checker = SchemaChecker(limit_s=60, memory_bytes=100 * 2**20, children=1)
    try:
        with pytest.raises(InvalidInput, match="memory"):
            checker.validate(["한" * 40] * 1_000_000, {"type": "array"})
        checker.validate(1, {"type": "integer"})
    finally:
        checker.close()


def test_many_checks_share_the_children(checker: SchemaChecker) -> None:
    def one(number: int) -> str:
        with pytest.raises(NotJson) as caught:
            checker.validate({"n": number}, {"properties": {"n": {"type": "string"}}})
        return caught.value.message

    with ThreadPoolExecutor(8) as threads:
        messages = list(threads.map(one, range(40)))
    assert [f"at $.n: {n} is not of type 'string'" in m for n, m in enumerate(messages)] == [
        True
    ] * 40


def test_a_million_problems_are_counted_no_further_than_they_are_of_use(
    checker: SchemaChecker,
) -> None:
    with pytest.raises(NotJson) as caught:
        checker.validate([0] * 100_000, {"items": {"type": "string"}})
    assert "and 95 more" in caught.value.message
