"""JSON answers: what is accepted, and what the errors say."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bounds import SHOWN_DEPTH
from shared.errors import InvalidInput
from workers.generation.answers import structured
from workers.generation.answers.structured import (
    NotJson,
    SchemaChecker,
    instructions,
    repair_messages,
)
from workers.generation.backends.interface import Message, Role

CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name", "people"],
}
SEOUL = {"name": "서울", "people": 9_600_000}
WRITTEN = json.dumps(SEOUL, ensure_ascii=False)


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


def refusal(text: str, schema: dict[str, Any] | None = None) -> str:
    with pytest.raises(NotJson) as caught:
        parse(text, schema)
    return caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN,
        f"\n {WRITTEN} \n",
        f"```json\n{WRITTEN}\n```",
        f"```\n{WRITTEN}\n```",
        f"Here it is:\n\n```json\n{WRITTEN}\n```\nIs that right?",
        f"The answer is {WRITTEN}. Good luck!",
        f"As passage [1] says: {WRITTEN} [2]",
        f"Use {{name}} like this: {WRITTEN}",
        f"<think>Perhaps {{}} or {{'a'}}?</think>\n{WRITTEN}",
    ],
)
def test_json_is_found(text: str) -> None:
    assert parse(text, CITY) == SEOUL
    assert parse(text, None) == SEOUL


@pytest.mark.parametrize(
    ("text", "value"),
    [("[1, 2]", [1, 2]), ("Values: [1, 2].", [1, 2]), ("42", 42), ('"a"', "a"), ("null", None)],
)
def test_other_values_than_objects(text: str, value: Any) -> None:
    assert parse(text, None) == value


def test_line_ends_in_strings_are_let_pass() -> None:
    assert parse('{"a": "one\ntwo"}', None) == {"a": "one\ntwo"}


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    )
)
def test_whatever_is_json_is_read(value: Any) -> None:
    text = json.dumps({"value": value}).replace("\\u0000", "")
    assert parse(text, None) == json.loads(text)
    assert parse(f"Sure:\n```json\n{text}\n```", None) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("I do not know.", "no JSON object or array"),
        (WRITTEN[:-1], "not valid JSON"),
        (f"Sure! {WRITTEN[:-4]}", "not valid JSON"),
        ('[{"a": 1}, {"a": 2}', "not valid JSON"),
        ('[{"a": 1}', "not valid JSON"),
        ("```json\n" + WRITTEN[:-1] + "\n```", "not valid JSON"),
        ("{'a': 1}", "no JSON"),
        ('{"a": 1} or {"a": 2}', "2 JSON values"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "too large"),
        ('{"a": "\\u0000"}', "NUL"),
        ('{"a\\u0000": 1}', "NUL"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"a":' * 50_000, "nested too deep"),
    ],
)
def test_what_is_not_json_is_reported(text: str, said: str) -> None:
    assert said in refusal(text)


@pytest.mark.parametrize("levels", [SHOWN_DEPTH + 1, 500, 990, 993, 2000])
def test_what_is_deeper_than_an_answer_can_be_written_is_a_fault_of_the_model(levels: int) -> None:
    with pytest.raises(NotJson, match="nested too deep"):
        structured.parse("[" * levels + "]" * levels)
    assert structured.parse("[" * SHOWN_DEPTH + "]" * SHOWN_DEPTH)


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert parse('{"a": "\\\\u0000"}', None) == {"a": "\\u0000"}


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


def test_the_instructions_hold_the_schema() -> None:
    assert json.dumps(CITY, ensure_ascii=False) in instructions(CITY)
    assert "JSON object" in instructions(None)


def test_the_repair_round_shows_the_answer_and_the_problem() -> None:
    messages = [Message(role=Role.USER, content="Seoul?")]
    problem = refusal(WRITTEN[:-1], CITY)
    repair = repair_messages(messages, WRITTEN[:-1], problem)
    assert repair[:1] == messages
    assert (repair[1].role, repair[1].content) == (Role.ASSISTANT, WRITTEN[:-1])
    assert repair[2].role == Role.USER
    assert problem in repair[2].content
    assert repair_messages(messages, "", problem)[1].content


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
