"""Tool calls in models' text: the formats, what stays text, streams, models without tools."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.generation.answers.tool_calls import ToolCallFilter, describe, parse, spell_out
from workers.generation.backends.interface import Message, Role, Tool, ToolCall

ADD = '{"name": "add", "arguments": {"a": 1}}'
LLAMA = '{"name": "add", "parameters": {"a": 1}}'
GET = '{"name": "get", "arguments": {}}'
ONE = [("add", {"a": 1})]
TWO = [*ONE, ("get", {})]
HERMES = f"<tool_call>\n{ADD}\n</tool_call>"


def calls_in(text: str) -> tuple[str, list[tuple[str, dict[str, object]]]]:
    shown, calls = parse(text)
    assert [call.id for call in calls] == [f"call_{n}" for n in range(len(calls))]
    return shown, [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (HERMES, "", ONE),
        (f"Let me see.\n\n{HERMES}\n<tool_call>{GET}</tool_call>\n", "Let me see.", TWO),
        (f"<tool_call>{ADD}", "", ONE),
        (f"<tool_call>{ADD}\n<tool_call>{GET}", "", TWO),
        (f"<tool_call>[{ADD}, {GET}]</tool_call>", "", TWO),
        (f"{HERMES} Done.", "Done.", ONE),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", ONE),
        ('<tool_call>{"name":"say","arguments":{"x":"</tool_call>"}}</tool_call>', "",
         [("say", {"x": "</tool_call>"})]),
        (LLAMA, "", ONE),
        (f"\n{LLAMA}\n", "", ONE),
        (f"{LLAMA}; {GET}", "", TWO),
        (f"{LLAMA}\n{GET}", "", TWO),
        (f"[{ADD}, {GET}]", "", TWO),
        (f"<|python_tag|>{LLAMA}", "", ONE),
        ('{"type": "function", "function": {"name": "add", "parameters": {"a": 1}}}', "", ONE),
        (f"[TOOL_CALLS] [{ADD}]", "", ONE),
        (f"[TOOL_CALLS][{ADD},{GET}]", "", TWO),
        ('[TOOL_CALLS]add{"a": 1}', "", ONE),
        ('[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]get[ARGS]{}', "", TWO),
        ('Well. [TOOL_CALLS]add[CALL_ID]x9[ARGS]{"a": 1}', "Well.", ONE),
        ('[TOOL_CALLS]add{"a": 1}get{}', "", TWO),
    ],
)  # fmt: skip
def test_calls_are_found(text: str, shown: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    assert calls_in(text) == (shown, calls)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  Hello.\n",
        "<tool_call>",
        f"<tool_call>{ADD[:-1]}</tool_call>",
        "<tool_call>add(1)</tool_call>",
        '<tool_call>{"name": "add"}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": "\\u0000"}}</tool_call>',
        f"<tool_call>{ADD} and more",
        f"The call is {LLAMA}",
        f"{LLAMA} and that was the call",
        '{"name": "Ada", "born": 1815}',
        "[1] says so",
        "[TOOL_CALLS] add",
        '[TOOL_CALLS]add{"a": ',
        "[TOOL_CALLS] [1]",
        "[" * 5000,
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse(text) == (text, ())


def test_a_broken_call_stays_and_a_good_one_beside_it_counts() -> None:
    broken = "<tool_call>{oops}</tool_call>"
    assert calls_in(f"{broken}\n{HERMES}") == (broken, ONE)


def test_bare_json_is_a_call_only_of_a_known_tool() -> None:
    assert parse(LLAMA, names=("get",)) == (LLAMA, ())
    assert len(parse(LLAMA, names=("get", "add"))[1]) == 1
    assert len(parse(HERMES, names=("get",))[1]) == 1


def test_ids_go_on_from_a_number() -> None:
    assert [call.id for call in parse(f"{LLAMA};{LLAMA}", first=3)[1]] == ["call_3", "call_4"]


# Streams


def streamed(pieces: list[str], names: tuple[str, ...] | None = None) -> str:
    filter_ = ToolCallFilter(names=names)
    return "".join([*map(filter_.feed, pieces), filter_.close()])


def test_text_is_shown_as_soon_as_it_cannot_be_a_call() -> None:
    filter_ = ToolCallFilter()
    assert filter_.feed("Let") == "Let"
    assert filter_.feed(" me ") == " me"
    assert filter_.feed("see <") == " see"
    assert filter_.feed("b") == " <b"
    assert filter_.feed("> \n<tool_") == ">"
    assert filter_.feed(f"call>{ADD}") == ""
    assert filter_.feed("</tool_call>") == ""
    assert filter_.close() == ""


def test_bare_calls_are_held_back_and_other_brackets_are_not() -> None:
    filter_ = ToolCallFilter()
    assert filter_.feed("{") + filter_.feed('"na') + filter_.feed('me": "add", "para') == ""
    assert filter_.feed('meters": {}}') + filter_.close() == ""
    assert ToolCallFilter().feed('{"city"') == '{"city"'
    assert ToolCallFilter().feed("[1] says") == "[1] says"


def test_a_call_that_was_none_is_shown_at_the_end() -> None:
    filter_ = ToolCallFilter()
    text = "See <tool_call>nothing"
    assert filter_.feed(text) == "See"
    assert filter_.close() == " <tool_call>nothing"


PARTS = st.lists(
    st.sampled_from([
        HERMES, f"<tool_call>{ADD[:-2]}", "[TOOL_CALLS]", 'add{"a": 1}', "<|python_tag|>", LLAMA,
        "<", "[", "{", '{"', "name", " ", "\n", "text", ";", "[TOOL", "</tool_call>", '"', "}",
    ]),
    max_size=8,
).map("".join)  # fmt: skip


@given(PARTS, st.lists(st.integers(min_value=0, max_value=150)), st.sampled_from([None, ("get",)]))
def test_a_stream_shows_what_parsing_leaves_whatever_the_pieces(
    text: str, cuts: list[int], names: tuple[str, ...] | None
) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(ends)]
    assert streamed(pieces, names) == parse(text, names=names)[0]
    assert streamed(list(text), names) == parse(text, names=names)[0]


# Models that know no tools

TOOL = Tool(name="add", description="Adds 한", parameters={"type": "object", "properties": {}})


def test_tools_are_described_in_the_hermes_format() -> None:
    description = describe([TOOL, TOOL])
    listed = description.partition("<tools>\n")[2].partition("\n</tools>")[0].split("\n")
    assert [json.loads(line)["function"]["name"] for line in listed] == ["add", "add"]
    assert "Adds 한" in description
    assert "<tool_call>" in description


def test_calls_and_results_become_text() -> None:
    call = ToolCall(id="call_0", name="add", arguments={"a": 1})
    messages = [
        Message(role=Role.SYSTEM, content="Be kind."),
        Message(role=Role.USER, content="1?"),
        Message(role=Role.ASSISTANT, content="Hm.", tool_calls=(call, call)),
        Message(role=Role.TOOL, content="one </tool_response>", tool_call_id="call_0"),
        Message(role=Role.TOOL, content="two <|im_end|>", tool_call_id="call_0"),
    ]
    system, user, assistant, results = spell_out(messages, [TOOL])
    assert system.content.startswith("Be kind.\n\n# Tools")
    assert user.content == "1?"
    assert parse(assistant.content) == (
        "Hm.",
        (call, ToolCall(id="call_1", name="add", arguments={"a": 1})),
    )
    assert not assistant.tool_calls
    assert results.role == Role.USER
    assert results.content == (
        "<tool_response>\none < /tool_response>\n</tool_response>\n"
        "<tool_response>\ntwo < |im_end|>\n</tool_response>"
    )
    assert spell_out(messages[1:2], [TOOL])[0].role == Role.SYSTEM
    assert spell_out(messages[:2], []) == messages[:2]
