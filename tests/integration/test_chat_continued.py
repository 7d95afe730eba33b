"""Chats that continue others, and what a chat that searches says of its searches."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.jobs import jobs
from tests.integration.chats import (
    chat,
    chat_error,
    chat_result,
    conversation,
    submit_chat,
    submit_messages,
    user,
)
from tests.integration.ingestion import ingest, new_collection
from tests.integration.job_runner import drain, job_of
from tests.wire.behaviour import Wire
from workers.attempts.process import Process

TEXTS = {"hours.md": "We open at nine [1].", "bread.md": "Bread is baked from flour."}


@pytest.fixture
def process(talker: Callable[..., Process]) -> Process:
    return talker(generation_flush_s=0.01)


def heard(wire: Wire) -> list[str]:
    """What the model read at its last turn."""
    return [message["content"] for message in wire.bodies("/api/chat")[-1]["messages"]]


class TestContinued:
    def test_several_chats_continue_one(self, process: Process, wire: Wire) -> None:
        first = submit_chat(process, "one", instructions="Be brief.")
        chat_result(process, first)
        second = submit_chat(process, "two", previous_job_id=str(first))
        chat_result(process, second)
        third = submit_chat(process, "three", previous_job_id=str(second), instructions="Be long.")
        chat_result(process, third)
        assert heard(wire) == ["Be long.", "one", "one", "two", "two", "three"]
        assert chat(process, "four", previous_job_id=str(first)) == "four"
        assert heard(wire) == ["one", "one", "four"]

    def test_calls_of_tools_are_part_of_what_was_said(self, process: Process, wire: Wire) -> None:
        tools = [{"type": "calculator"}]
        first = submit_chat(process, 'call calculator {"expression": "6*7"}', tools=tools)
        chat_result(process, first)
        chat(process, "and?", previous_job_id=str(first))
        roles = [message["role"] for message in wire.bodies("/api/chat")[-1]["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user"]

    def test_all_system_messages_count(self, process: Process, wire: Wire) -> None:
        first = submit_messages(process, [{"role": "system", "content": "a"}, user("one")])
        chat_result(process, first)
        messages = [user("two"), {"role": "system", "content": "b"}]
        chat_result(process, submit_messages(process, messages, previous_job_id=str(first)))
        assert heard(wire) == ["a", "b", "one", "one", "two"]

    def test_a_turn_of_a_conversation_goes_back_to_its_beginning(
        self, process: Process, wire: Wire
    ) -> None:
        talk = conversation(process)
        chat(process, "one", conversation_id=talk)
        second = submit_chat(process, "two", conversation_id=talk)
        chat_result(process, second)
        chat(process, "three", conversation_id=talk)
        chat(process, "branch", previous_job_id=str(second))
        assert heard(wire) == ["one", "one", "two", "two", "branch"]

    def test_a_large_answer_is_read_from_the_storage(
        self, talker: Callable[..., Process], wire: Wire
    ) -> None:
        process = talker(result_inline_bytes=1)
        first = submit_chat(process, "one")
        chat_result = answered_large(process, first)
        assert chat_result.result_path is not None
        second = submit_chat(process, "two", previous_job_id=str(first))
        answered_large(process, second)
        assert heard(wire) == ["one", "one", "two"]

    def test_a_chat_that_is_gone_is_named(self, process: Process) -> None:
        first = submit_chat(process, "one")
        chat_result(process, first)
        second = submit_chat(process, "two", previous_job_id=str(first))
        chat_result(process, second)
        with process.ledger.begin() as session:
            jobs.erase(session, first)
        error = chat_error(process, submit_chat(process, "three", previous_job_id=str(second)))
        assert error["type"] == "NotFound"
        assert str(first) in error["message"]

    def test_another_keys_chat_is_not_continued(self, process: Process) -> None:
        first = submit_chat(process, "one")
        chat_result(process, first)
        with process.ledger.begin() as session:
            job = jobs.get(session, first)
            job.fair_key = "somebody else"
        error = chat_error(process, submit_chat(process, "two", previous_job_id=str(first)))
        assert error["type"] == "NotFound"


def answered_large(process: Process, job_id: Any) -> Any:
    drain(process)
    return job_of(process, job_id)


def test_history_that_is_to_be_whole_is_not_cut(process: Process) -> None:
    messages = [user("word " * 3000), {"role": "assistant", "content": "a"}, user("more")]
    assert chat_result(process, submit_messages(process, messages))["messages_dropped"] > 0
    error = chat_error(process, submit_messages(process, messages, history="whole"))
    assert error["type"] == "WindowExceeded"


class TestSearches:
    def search(self, process: Process, query: str, **tool: Any) -> dict[str, Any]:
        call = f'call search_collection {{"query": "{query}"}}'
        tools = [{"type": "search_collection", **tool}]
        return chat_result(process, submit_chat(process, call, tools=tools))

    def test_what_was_found_is_in_the_result(self, process: Process) -> None:
        collection = new_collection(process)
        ingest(process, collection, TEXTS)
        result = self.search(process, "opening hours", collections=[collection], k=1)
        (search,) = result["searches"]
        assert (search["query"], search["first"]) == ("opening hours", 1)
        assert [hit["source"] for hit in search["hits"]] == ["hours.md"]
        assert 'id="1"' in result["steps"][1]["content"]
        assert search["call_id"] == result["steps"][0]["tool_calls"][0]["id"]

    def test_several_collections_with_a_filter_and_a_least_score(self, process: Process) -> None:
        one, other = new_collection(process), new_collection(process)
        ingest(process, one, TEXTS)
        ingest(process, other, {"late.md": "On Fridays we open at ten."})
        both = self.search(process, "open", collections=[one, other], k=5)["searches"][0]["hits"]
        assert {hit["collection"] for hit in both} == {one, other}
        options = {"filter": {"source": {"$ne": "hours.md"}}}
        hits = self.search(process, "open", collections=[one, other], k=5, search=options)
        sources = {hit["source"] for hit in hits["searches"][0]["hits"]}
        assert sources == {"bread.md", "late.md"}
        nothing = self.search(process, "open", collections=[one], least_score=1.0)
        assert nothing["searches"][0]["hits"] == []

    def test_calls_beyond_the_limit_are_ignored(self, process: Process) -> None:
        collection = new_collection(process)
        ingest(process, collection, TEXTS)
        tools = [{"type": "search_collection", "collection": collection}]
        call = 'call search_collection {"query": "a"}'
        result = chat_result(process, submit_chat(process, call, tools=tools, tool_calls_limit=0))
        assert (result["steps"], result["searches"]) == ([], [])
