"""A job's events as text, tool runs and the ended job: nothing twice, nothing lost."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sluice import Event, Job, StreamItem, TextPiece, ToolRun
from sluice.events import EventReader

Piece = tuple[int, int, str]


def token(step: int, offset: int, text: str) -> Event:
    return Event(event="token", data={"step": step, "offset": offset, "text": text})


def end(result: dict[str, Any] | None, state: str = "succeeded") -> Event:
    return Event(event="end", data={"id": "j", "kind": "chat", "state": state, "result": result})


def chat(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def items_of(events: Sequence[Event], *, is_whole: bool) -> list[StreamItem]:
    reader = EventReader(is_whole=is_whole)
    return [item for event in events for item in reader.items(event)]


def texts(events: Sequence[Event], *, is_whole: bool = True) -> list[str]:
    *before, last = items_of(events, is_whole=is_whole)
    assert isinstance(last, Job)
    return [piece.text for piece in before if isinstance(piece, TextPiece)]


def test_pieces_come_as_they_are_sent() -> None:
    assert texts([token(1, 0, "여권 "), token(1, 3, "갱신"), end(chat("여권 갱신"))]) == [
        "여권 ",
        "갱신",
    ]


def test_what_comes_twice_is_dropped() -> None:
    events = [token(1, 0, "abc"), token(1, 0, "abc"), token(1, 1, "bcd"), end(chat("abcd"))]
    assert texts(events) == ["abc", "d"]


def test_what_is_missing_at_the_end_comes_from_the_result() -> None:
    assert texts([token(1, 0, "ab"), end(chat("abcd"))]) == ["ab", "cd"]
    assert texts([end(chat("abcd"))]) == ["abcd"]
    assert texts([end({"answer": "quoted", "citations": []})]) == ["quoted"]


def test_a_resumed_stream_has_what_follows_alone() -> None:
    assert texts([token(1, 2, "cd"), end(chat("abcdef"))], is_whole=False) == ["cd", "ef"]
    assert texts([end(chat("abcd"))], is_whole=False) == []


def test_the_answers_of_an_agent_are_separated() -> None:
    run = {"id": "c1", "step": 2, "name": "calculator", "arguments": {"expression": "6*7"}}
    events = [
        token(1, 0, "Let me see."),
        Event(event="tool", data=run),
        Event(event="tool", data={"id": "c1", "name": "calculator", "result": "42"}),
        token(3, 0, "It is 42."),
        token(1, 0, "Let me see."),
        end(chat("It is 42.")),
    ]
    first, begun, done, second, job = items_of(events, is_whole=True)
    assert first == TextPiece(step=1, text="Let me see.")
    assert begun == ToolRun(id="c1", name="calculator", arguments={"expression": "6*7"})
    assert done == ToolRun(id="c1", name="calculator", result="42")
    assert second == TextPiece(step=3, text="It is 42.")
    assert isinstance(job, Job)


def test_a_last_answer_that_was_not_sent_comes_from_the_result() -> None:
    assert texts([token(1, 0, "Let me see."), end(chat("It is 42."))]) == [
        "Let me see.",
        "It is 42.",
    ]


def test_a_job_that_did_not_succeed_has_no_more_than_was_sent() -> None:
    assert texts([token(1, 0, "ab"), end(None, "cancelled")]) == ["ab"]
    assert texts([end(None, "failed")]) == []


@given(st.text(min_size=1, max_size=40), st.data())
def test_each_character_comes_once_however_the_text_is_cut_and_repeated(
    text: str, data: st.DataObject
) -> None:
    events, known = [], 0
    while known < len(text) and data.draw(st.booleans()):
        start = data.draw(st.integers(0, known))
        stop = data.draw(st.integers(start, len(text)))
        events.append(token(1, start, text[start:stop]))
        known = max(known, stop)
    assert "".join(texts([*events, end(chat(text))])) == text
