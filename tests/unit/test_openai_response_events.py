"""The events of a response are the same however what the job writes comes in pieces."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from shared.config import Settings
from shared.errors import InvalidInput
from shared.kinds.batch import EndedJob
from shared.kinds.chat import ChatResult, ToolSearch, Usage
from shared.kinds.search import Hit
from shared.openai.items import ItemWriter
from shared.openai.response_events import ResponseEvent, ResponseEvents, cut
from shared.openai.responses import RESPONSES

OWNER = UUID(int=7)
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESPONSE: dict[str, Any] = {
    "id": f"resp_{OWNER.hex}", "object": "response", "created_at": 1, "status": "in_progress",
    "model": "ollama/tiny", "output": [], "tools": [], "tool_choice": "auto",
    "parallel_tool_calls": True,
}  # fmt: skip
TEXTS = st.text(st.sampled_from("ab 한\n[1]🙂\u0301"), max_size=60)


@hypothesis.settings(max_examples=30)
@given(TEXTS, st.lists(st.integers(0, 60), max_size=8))
def test_where_a_text_is_cut_does_not_depend_on_how_it_comes(text: str, places: list[int]) -> None:
    whole = cut(text, is_whole=True)
    assert "".join(whole) == text
    pieces: list[str] = []
    waiting, last = "", 0
    for place in sorted(places):
        waiting += text[last:place]
        last = max(last, place)
        new = cut(waiting, is_whole=False)
        pieces += new
        waiting = waiting[sum(map(len, new)) :]
    waiting += text[last:]
    assert pieces + cut(waiting, is_whole=True) == whole


def call(id_: str, name: str = "search_collection", **arguments: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def said(text: str, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "tool_calls": list(calls)}


def came(id_: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": text}


def hit(source: str) -> Hit:
    document_id = str(UUID(int=len(source)))
    return Hit(chunk_id="c", document_id=document_id, source=source, text="", start=0, score=0.5)


STEPS = [
    said("Let me look [1].", call("a", query="one"), call("b", query="two")),
    came("a", "found"),
    came("b", "found"),
    said("", call("c", name="nonsense")),
    came("c", "error: there is no tool"),
    said("Once more.", call("d", wrong=1)),
    came("d", "error: wrong"),
]
SEARCHES = [
    ToolSearch(call_id="a", query="one", first=1, hits=[hit("a.md"), hit("bb.md")]),
    ToolSearch(call_id="b", query="two", first=3, hits=[hit("ccc.md")]),
]
ANSWER = "Nine [1], and ten [2, 3]; not [9]."
RESULT = ChatResult(
    message=said(ANSWER, call("e", name="weather", city="Busan")),
    model="ollama/tiny",
    usage=Usage(prompt_tokens=1, completion_tokens=1),
    steps=STEPS,
    searches=SEARCHES,
)
ENDED = {**RESPONSE, "status": "completed"}


def events(starting_after: int = -1) -> ResponseEvents:
    writer = ItemWriter(owner=OWNER, with_results=True)
    return ResponseEvents(writer=writer, is_queued=True, starting_after=starting_after)


def at_once(starting_after: int = -1) -> list[ResponseEvent]:
    """As they are written for a reader who comes when all is done."""
    told = events(starting_after)
    return [*told.begin(RESPONSE), *told.end(RESULT, ENDED)]


def bit_by_bit(cuts: Sequence[int]) -> Iterator[ResponseEvent]:
    """As they are written while the job runs; after some of its steps nothing is told."""
    told = events()
    yield from told.begin(RESPONSE)
    turns: list[tuple[int, str]] = [(0, STEPS[0]["content"]), (5, STEPS[5]["content"]), (7, ANSWER)]
    for step_id, (so_far, text) in enumerate(turns, start=1):
        yield from told.settled(STEPS[:so_far], SEARCHES if so_far else [], RESPONSE)
        at = 0
        for place in [*sorted(cut_ for cut_ in cuts if cut_ < len(text)), len(text)]:
            yield from told.text(step_id, text[at:place], RESPONSE)
            at = max(at, place)
        if step_id == 1:  # the searches are at work, then the first one is done
            yield from told.settled(STEPS[:1], [], RESPONSE)
            yield from told.settled(STEPS[:2], SEARCHES[:1], RESPONSE)
    yield from told.end(RESULT, ENDED)


@hypothesis.settings(max_examples=30)
@given(st.lists(st.integers(0, 40), max_size=6))
def test_events_do_not_depend_on_when_they_are_read(cuts: list[int]) -> None:
    assert list(bit_by_bit(cuts)) == at_once()


@hypothesis.settings(max_examples=30)
@given(st.text(st.sampled_from("ab 한🙂"), min_size=1, max_size=40), st.data())
def test_log_probabilities_come_with_the_text_of_their_tokens(text: str, data: Any) -> None:
    """Tokens are bytes here, as those of byte-level models: several make a character."""
    bytes_ = text.encode()
    scored = [
        {"token": f"<{n}>", "logprob": -1.0, "bytes": [byte], "top_logprobs": []}
        for n, byte in enumerate(bytes_)
    ]
    result = ChatResult(
        message=said(text), model="hf/tiny", usage=Usage(prompt_tokens=1, completion_tokens=1)
    )

    def written(cuts: Sequence[int], *, known: bool) -> list[ResponseEvent]:
        told = events()
        all_ = list(told.begin(RESPONSE))
        at = count = 0
        for place in [*sorted(cuts), len(text)]:
            upto = len(text[:place].encode()) if known else 0
            all_ += told.text(1, text[at:place], RESPONSE, scored[count:upto], count)
            at, count = place, upto
        return [*all_, *told.end(result, ENDED, scored)]

    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    at_once_ = written([], known=True)
    assert written(cuts, known=True) == at_once_
    for all_ in (at_once_, written(cuts, known=False)):
        done = next(event for event in all_ if event["type"] == "response.output_text.done")
        assert len(done["logprobs"]) == len(scored)
        for event in all_:
            EVENTS.validate_python(event)
    deltas = [event for event in at_once_ if event["type"] == "response.output_text.delta"]
    for event in deltas:
        places = [int(entry["token"][1:-1]) for entry in event["logprobs"]]
        assert bytes(bytes_[place] for place in places).decode() == event["delta"]


def test_all_events_are_valid_and_numbered_from_0_on() -> None:
    all_ = at_once()
    for number, event in enumerate(all_):
        assert event["sequence_number"] == number
        EVENTS.validate_python(event)
    for number in (0, 5, len(all_) - 1):
        assert at_once(number) == all_[number + 1 :]


def test_items_are_what_was_said_and_called() -> None:
    output: Sequence[Mapping[str, Any]] = at_once()[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in output] == [
        ("message", "completed"), ("file_search_call", "completed"),
        ("file_search_call", "completed"), ("message", "completed"),
        ("file_search_call", "failed"), ("message", "completed"), ("function_call", "completed"),
    ]  # fmt: skip
    assert len({item["id"] for item in output}) == len(output)
    (first,) = output[0]["content"]
    assert first["annotations"] == []  # nothing had been found by then
    (last,) = output[5]["content"]
    assert [(one["index"], one["filename"]) for one in last["annotations"]] == [
        (5, "a.md"), (18, "bb.md"), (18, "ccc.md"),
    ]  # fmt: skip
    assert output[6]["arguments"] == '{"city": "Busan"}'


def test_one_in_the_background_says_when_it_begins() -> None:
    told = events()
    assert [event["type"] for event in told.begin(RESPONSE)] == [
        "response.created", "response.queued",
    ]  # fmt: skip
    failed = {**RESPONSE, "status": "failed"}
    assert [event["type"] for event in told.fail(failed)] == [
        "response.in_progress", "response.failed",
    ]  # fmt: skip


def test_a_line_of_a_batch() -> None:
    settings = Settings(_env_file=None)
    tool = {"type": "file_search", "vector_store_ids": ["handbook"]}
    body = {"model": "ollama/tiny", "input": "Hello", "tools": [tool], "metadata": {"a": "b"}}
    request = RESPONSES.read(body, settings)
    assert request.kind.name == "chat"
    ended = EndedJob(
        id=OWNER,
        input=request.input.model_dump(mode="json"),
        result=RESULT.model_dump(mode="json"),
        created_at=datetime.now(UTC),
        options=json.loads(json.dumps(request.options)),
    )
    response = Response.model_validate(RESPONSES.answer(ended))
    assert response.output_text == "".join([STEPS[0]["content"], STEPS[5]["content"], ANSWER])
    assert response.metadata == {"a": "b"}
    for more, param in (
        ({"stream": True}, "stream"),
        ({"background": True}, "background"),
        ({"tools": [tool | {"vector_store_ids": ["vs_1"]}]}, "tools.0.vector_store_ids"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ):
        with pytest.raises(InvalidInput, match=param):
            RESPONSES.read(body | more, settings)
