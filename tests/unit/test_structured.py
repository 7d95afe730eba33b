"""JSON answers: what is accepted, and what the errors say."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bounds import SHOWN_DEPTH
from shared.errors import NotJson
from workers.generation.answers import structured
from workers.generation.answers.structured import (
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


def refusal(text: str) -> str:
    with pytest.raises(NotJson) as caught:
        structured.parse(text)
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
    assert structured.parse(text) == SEOUL


@pytest.mark.parametrize(
    ("text", "value"),
    [("[1, 2]", [1, 2]), ("Values: [1, 2].", [1, 2]), ("42", 42), ('"a"', "a"), ("null", None)],
)
def test_other_values_than_objects(text: str, value: Any) -> None:
    assert structured.parse(text) == value


def test_line_ends_in_strings_are_let_pass() -> None:
    assert structured.parse('{"a": "one\ntwo"}') == {"a": "one\ntwo"}


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
    assert structured.parse(text) == json.loads(text)
    assert structured.parse(f"Sure:\n```json\n{text}\n```") == json.loads(text)


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
    assert structured.parse('{"a": "\\\\u0000"}') == {"a": "\\u0000"}


def test_the_instructions_hold_the_schema() -> None:
    assert json.dumps(CITY, ensure_ascii=False) in instructions(CITY)
    assert "JSON object" in instructions(None)


def test_the_repair_round_shows_the_answer_and_the_problem() -> None:
    messages = [Message(role=Role.USER, content="Seoul?")]
    problem = refusal(WRITTEN[:-1])
    repair = repair_messages(messages, WRITTEN[:-1], problem)
    assert repair[:1] == messages
    assert (repair[1].role, repair[1].content) == (Role.ASSISTANT, WRITTEN[:-1])
    assert repair[2].role == Role.USER
    assert problem in repair[2].content
    assert repair_messages(messages, "", problem)[1].content
