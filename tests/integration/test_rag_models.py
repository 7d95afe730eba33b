"""The kind `rag` with a model that generates: prompts, citations, JSON, and room in the window."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from shared.kinds import registry as kinds
from shared.kinds.rag import RagInput
from shared.vocabulary import Queue
from tests.integration.chats import MODEL, chat_error, chat_result
from tests.integration.erasures import order_erasure
from tests.integration.ingestion import document_id, ingest, new_collection
from tests.integration.job_runner import handlers, submit
from tests.wire.behaviour import Wire
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.generation.languages import ENGLISH, KOREAN

ECHO = "{context}\nQ: {question}"


@pytest.fixture
def process(talker: Callable[..., Process]) -> Process:
    return talker(remote_window_tokens=2048)


@pytest.fixture
def collection(process: Process) -> str:
    name = new_collection(process)
    texts = {f"note {n}": f"Fact {n} of the museum: room {n} opens at {n + 8}." for n in range(4)}
    ingest(process, name, texts)
    return name


def ask(process: Process, collection: str, question: str, **fields: Any) -> UUID:
    body = {"collection": collection, "question": question, "model": MODEL} | fields
    return submit(process, kinds.RAG, RagInput.model_validate(body).model_dump(mode="json"))


def prompt_of(wire: Wire) -> str:
    return str(wire.bodies("/api/chat")[-1]["messages"][-1]["content"])


def test_the_model_reads_the_passages_and_its_markers_become_citations(
    process: Process, collection: str, wire: Wire
) -> None:
    question = "When does room 2 open? It says so in [1] and [9]."
    result = chat_result(process, ask(process, collection, question, k=3, prompt=ECHO))

    # The test server repeats its prompt, so the question's markers are in its answer.
    assert "[1]" in result["answer"]
    assert "[9]" not in result["answer"]
    assert result["markers_removed"] == 1
    (citation,) = result["citations"]
    assert citation["marker"] == "[1]"
    assert citation["text"] in prompt_of(wire)
    assert result["usage"]["prompt_tokens"] > 0
    assert result["model"] == MODEL
    assert result["passages_dropped"] == 0


def test_passages_that_find_no_room_are_dropped_from_the_tail(
    talker: Callable[..., Process],
) -> None:
    process = talker(remote_window_tokens=480)
    name = new_collection(process)
    ingest(
        process, name, {f"d{n}": f"The tower {n} is old. " * 12 for n in range(5)},
        splitter={"type": "recursive", "chunk_size": 400, "chunk_overlap": 0},
    )  # fmt: skip
    job_id = ask(process, name, "How old?", k=5, parameters={"max_tokens": 32})
    result = chat_result(process, job_id)
    assert 0 < result["passages_dropped"] < 5


@pytest.mark.parametrize(
    ("question", "answer"),
    [("What is it?", ENGLISH.not_found), ("이것은 무엇인가요?", KOREAN.not_found)],
)
def test_without_passages_no_model_is_called(
    process: Process, wire: Wire, question: str, answer: str
) -> None:
    empty = new_collection(process)
    result = chat_result(process, ask(process, empty, question))
    assert (result["answer"], result["citations"]) == (answer, [])
    assert wire.bodies("/api/chat") == []


def test_json_about_passages_is_valid_and_counts_markers(process: Process, collection: str) -> None:
    schema = {"type": "object", "required": ["room"]}
    job_id = ask(
        process, collection, '{"room": "2 [1]"}', k=1, prompt="{question} {context}",
        response_format={"type": "json", "schema": schema},
    )  # fmt: skip
    result = chat_result(process, job_id)
    assert result["parsed"] == {"room": "2 [1]"}
    assert [citation["marker"] for citation in result["citations"]] == ["[1]"]


def test_a_question_beyond_the_window_says_how_much_too_long_it_is(
    process: Process, collection: str
) -> None:
    error = chat_error(process, ask(process, collection, "why " * 6000))
    assert error["type"] == "InvalidInput"
    assert "tokens" in error["message"]


def test_text_erased_after_the_search_is_not_in_the_prompt(
    process: Process, collection: str, wire: Wire
) -> None:
    job_id = ask(process, collection, "When does room 3 open?", k=4)
    assert run_next(process, handlers(), Queue.QUERY.value)
    order_erasure(process, document_ids=[document_id(process, collection, "note 3")])
    assert run_next(process, handlers(), Queue.CONTROL.value)
    chat_result(process, job_id)
    assert "Fact 3" not in prompt_of(wire)
    assert "Fact 2" in prompt_of(wire)
