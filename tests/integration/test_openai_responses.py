"""Responses, with OpenAI's own client over a socket: each answer and each event is checked by the
client's types, and by the whole description where SLUICE_OPENAPI_DESCRIPTION names it."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import BaseModel, TypeAdapter

from shared.config import Settings
from tests.api_server import ROOT
from tests.integration.description import valid
from tests.integration.ingestion import new_collection
from tests.integration.thread_worker import running_worker
from tests.wire.behaviour import Behaviour, Wire
from tests.wire.ollama_server import served_ollama
from workers.attempts.process import Process

MODEL = "ollama/tiny"
DELTA: Literal["response.output_text.delta"] = "response.output_text.delta"
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "How it is outside",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture(scope="module")
def ollama() -> Iterator[Wire]:
    with served_ollama() as wire:
        yield wire


@pytest.fixture(scope="module")
def settings(settings: Settings, ollama: Wire) -> Settings:
    return settings.model_copy(update={"ollama_url": ollama.url, "sse_poll_s": 0.2})


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Iterator[Process]:
    with running_worker(settings) as process:
        yield process


@pytest.fixture(scope="module")
def client(api_url: str, worker: Process) -> Iterator[OpenAI]:  # noqa: ARG001 (it answers)
    with OpenAI(base_url=f"{api_url}/openai/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def raw(api_url: str, worker: Process) -> Iterator[httpx.Client]:  # noqa: ARG001 (it answers)
    with httpx.Client(base_url=f"{api_url}/openai/v1", timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(autouse=True)
def _well(ollama: Wire) -> None:
    ollama.behaviours.clear()
    ollama.requests.clear()


@pytest.fixture(scope="module")
def collection(api_url: str, worker: Process) -> str:
    name = new_collection(worker)
    texts = {"hours.md": "We open at nine [1].", "bread.md": "Bread is baked from flour."}
    sources = [{"type": "text", "name": source, "text": text} for source, text in texts.items()]
    job = {"kind": "ingest", "input": {"collection": name, "sources": sources}}
    with httpx.Client(base_url=api_url, timeout=70, trust_env=False) as client:
        ingest = client.post("/v1/jobs", json=job).json()
        while ingest["state"] in ("queued", "running"):
            ingest = client.get(f"/v1/jobs/{ingest['id']}").json()
    assert ingest["state"] == "succeeded", ingest
    return name


def create(client: OpenAI, input_: Any, **fields: Any) -> Response:
    raw = client.responses.with_raw_response.create(**({"model": MODEL, "input": input_} | fields))
    return checked(raw.http_response.json())


def checked(body: dict[str, Any]) -> Response:
    valid(body, "Response")
    return Response.model_validate(body)


def streamed(answer: Iterator[str]) -> list[dict[str, Any]]:
    """The events of a stream, each of them valid, numbered from its first one on."""
    events: list[dict[str, Any]] = []
    for line in answer:
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            valid(event, "ResponseStreamEvent")
            EVENTS.validate_python(event)
            events.append(event)
    first = events[0]["sequence_number"]
    assert [event["sequence_number"] for event in events] == list(range(first, first + len(events)))
    return events


def stream(raw: httpx.Client, input_: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": MODEL, "input": input_, "stream": True} | fields
    with raw.stream("POST", "/responses", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return streamed(answer.iter_lines())


def again(raw: httpx.Client, id_: str, **query: Any) -> list[dict[str, Any]]:
    with raw.stream("GET", f"/responses/{id_}", params={"stream": "true"} | query) as answer:
        return streamed(answer.iter_lines())


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def heard(ollama: Wire) -> list[tuple[str, str]]:
    messages = ollama.bodies("/api/chat")[-1]["messages"]
    return [(message["role"], message.get("content", "")) for message in messages]


class TestText:
    def test_a_text(self, client: OpenAI, ollama: Wire) -> None:
        response = create(
            client,
            "count to 3",
            instructions="Be brief.",
            metadata={"topic": "demo"},
            max_output_tokens=100,
            temperature=0.5,
            top_p=0.9,
            user="somebody",
        )
        assert response.output_text == "1 2 3"
        assert response.status == "completed"
        assert response.id.startswith("resp_")
        assert response.usage is not None
        assert response.usage.output_tokens == 3
        assert response.metadata == {"topic": "demo"}
        assert (response.temperature, response.top_p) == (0.5, 0.9)
        assert response.model == MODEL
        assert heard(ollama) == [("system", "Be brief."), ("user", "count to 3")]

    def test_items(self, client: OpenAI, ollama: Wire) -> None:
        part = {"type": "input_text", "text": "Two "}
        items = [
            {"role": "developer", "content": "Rules."},
            {"role": "user", "content": [part, part | {"text": "parts"}]},
            {"type": "message", "role": "assistant", "id": "msg_x", "status": "completed",
             "content": [{"type": "output_text", "text": "Yes.", "annotations": []}]},
            {"type": "message", "role": "user", "content": "And?"},
        ]  # fmt: skip
        assert create(client, items).output_text == "And?"
        assert heard(ollama) == [
            ("system", "Rules."), ("user", "Two parts"), ("assistant", "Yes."), ("user", "And?"),
        ]  # fmt: skip

    def test_one_that_is_cut_off_is_incomplete(self, client: OpenAI) -> None:
        response = create(client, "count to 9", max_output_tokens=2)
        assert response.output_text == "1 2"
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"

    def test_the_asynchronous_client(self, client: OpenAI) -> None:
        async def use() -> None:
            async with AsyncOpenAI(base_url=client.base_url, api_key="none") as other:
                response = await other.responses.create(model=MODEL, input="hello")
                assert response.output_text == "hello"
                async with other.responses.stream(model=MODEL, input="count to 2") as events:
                    texts = [event.delta async for event in events if event.type == DELTA]
                    final = await events.get_final_response()
            assert "".join(texts) == final.output_text == "1 2"

        asyncio.run(use())

    def test_json_by_a_schema(self, client: OpenAI) -> None:
        class City(BaseModel):
            name: str
            people: int

        parsed = client.responses.parse(
            model=MODEL, input='{"name": "Busan", "people": 3}', text_format=City
        )
        assert parsed.output_parsed == City(name="Busan", people=3)
        free = create(client, '{"a": 1}', text={"format": {"type": "json_object"}})
        assert json.loads(free.output_text) == {"a": 1}


class TestStreams:
    def test_the_events_of_a_text(self, raw: httpx.Client) -> None:
        events = stream(raw, "count to 3")
        assert types_of(events) == [
            "created", "in_progress", "output_item.added", "content_part.added",
            "output_text.delta", "output_text.delta", "output_text.delta", "output_text.done",
            "content_part.done", "output_item.done", "completed",
        ]  # fmt: skip
        deltas = [event["delta"] for event in events if "delta" in event]
        assert deltas == ["1", " 2", " 3"]
        final = events[-1]["response"]
        assert checked(final).output_text == "1 2 3"
        assert raw.get(f"/responses/{final['id']}").json() == final

    def test_a_reader_that_comes_back_gets_the_rest(self, raw: httpx.Client) -> None:
        events = stream(raw, "count to 30")
        id_ = events[-1]["response"]["id"]
        assert again(raw, id_) == events
        for after in (0, 7, len(events) - 2):
            assert again(raw, id_, starting_after=after) == events[after + 1 :]
        for after in (len(events) - 1, 10**6):
            rest = raw.get(f"/responses/{id_}", params={"stream": True, "starting_after": after})
            assert (rest.status_code, rest.text) == (200, ""), "there is nothing more"

    def test_in_the_middle_of_the_answer(self, raw: httpx.Client, ollama: Wire) -> None:
        ollama.behaviours["tiny"] = Behaviour(delay_s=0.02)
        body = {"model": MODEL, "input": "count to 20", "stream": True, "background": True}
        begun: list[dict[str, Any]] = []
        with raw.stream("POST", "/responses", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    begun.append(json.loads(line.removeprefix("data: ")))
                if len(begun) == 8:
                    break
        assert types_of(begun)[:3] == ["created", "queued", "in_progress"]
        rest = again(raw, begun[0]["response"]["id"], starting_after=begun[-1]["sequence_number"])
        whole = again(raw, begun[0]["response"]["id"])
        assert whole == begun + rest
        assert rest[-1]["response"]["status"] == "completed"

    def test_with_the_clients_own_stream(self, client: OpenAI) -> None:
        with client.responses.stream(model=MODEL, input="count to 4") as events:
            for event in events:
                assert event.sequence_number >= 0
            final = events.get_final_response()
        assert final.output_text == "1 2 3 4"
        more = client.responses.retrieve(final.id, stream=True, starting_after=3)
        assert "".join(event.delta for event in more if event.type == DELTA) == "1 2 3 4"

    def test_a_job_that_fails(self, raw: httpx.Client, ollama: Wire) -> None:
        ollama.behaviours["tiny"] = Behaviour(refuse_times=9, refuse_status=400)
        events = stream(raw, "hello")
        assert types_of(events) == ["created", "in_progress", "failed"]
        failed = checked(events[-1]["response"])
        assert failed.status == "failed"
        assert failed.error is not None
        assert "out of order" in failed.error.message
        assert checked(raw.get(f"/responses/{failed.id}").json()).error == failed.error


class TestFunctions:
    def test_calls_and_their_outputs(self, client: OpenAI, ollama: Wire) -> None:
        first = create(client, 'call weather {"city": "Busan"}', tools=[WEATHER])
        (call,) = first.output
        assert call.type == "function_call"
        assert json.loads(call.arguments) == {"city": "Busan"}
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        chained = create(client, [output], previous_response_id=first.id, tools=[WEATHER])
        assert chained.output_text == "The tool says sunny"
        question = {"role": "user", "content": 'call weather {"city": "Busan"}'}
        items = [question, *(item.model_dump() for item in first.output), output]
        assert create(client, items, tools=[WEATHER]).output_text == "The tool says sunny"
        assert [role for role, _ in heard(ollama)] == ["user", "assistant", "tool"]

    def test_events(self, raw: httpx.Client) -> None:
        events = stream(raw, 'call weather {"city": "Busan"}', tools=[WEATHER])
        assert types_of(events) == [
            "created", "in_progress", "output_item.added", "function_call_arguments.delta",
            "function_call_arguments.done", "output_item.done", "completed",
        ]  # fmt: skip
        assert again(raw, events[-1]["response"]["id"]) == events

    def test_a_reference_to_an_item(self, client: OpenAI) -> None:
        first = create(client, 'call weather {"city": "Busan"}', tools=[WEATHER])
        (call,) = first.output
        assert call.type == "function_call"
        items = [
            {"role": "user", "content": "Hello"},
            {"type": "item_reference", "id": call.id},
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
        ]
        assert create(client, items, tools=[WEATHER]).output_text == "The tool says rain"
        with pytest.raises(openai.NotFoundError, match="no item"):
            create(client, [{"type": "item_reference", "id": "msg_1"}])


class TestFileSearch:
    def tool(self, collection: str, **options: Any) -> dict[str, Any]:
        return {"type": "file_search", "vector_store_ids": [collection]} | options

    def test_citations_and_results(self, client: OpenAI, collection: str) -> None:
        response = create(
            client,
            'call search_collection {"query": "opening hours"}',
            tools=[self.tool(collection, max_num_results=1)],
            include=["file_search_call.results"],
        )
        search, message = response.output
        assert search.type == "file_search_call"
        assert search.queries == ["opening hours"]
        assert search.results is not None
        assert [result.filename for result in search.results] == ["hours.md"]
        assert search.results[0].text == "We open at nine [1]."
        assert message.type == "message"
        (text,) = message.content
        assert text.type == "output_text"
        (citation,) = text.annotations
        assert citation.type == "file_citation"
        assert citation.filename == "hours.md"
        assert citation.file_id == search.results[0].file_id
        assert text.text[citation.index :].startswith("[1]")
        plain = client.responses.retrieve(response.id)
        assert plain.output[0].results is None  # type: ignore[union-attr]
        again = client.responses.retrieve(response.id, include=["file_search_call.results"])
        assert again.output == response.output

    def test_events(self, raw: httpx.Client, collection: str) -> None:
        events = stream(
            raw,
            'call search_collection {"query": "opening hours"}',
            tools=[self.tool(collection)],
        )
        types = types_of(events)
        assert types[2:9] == [
            "output_item.added", "file_search_call.in_progress", "file_search_call.searching",
            "file_search_call.completed", "output_item.done", "output_item.added",
            "content_part.added",
        ]  # fmt: skip
        assert "output_text.annotation.added" in types
        assert again(raw, events[-1]["response"]["id"]) == events
        assert again(raw, events[-1]["response"]["id"], starting_after=4) == events[5:]

    def test_filters_and_thresholds(self, client: OpenAI, collection: str) -> None:
        def found(**options: Any) -> list[str | None]:
            response = create(
                client,
                'call search_collection {"query": "flour"}',
                tools=[self.tool(collection, **options)],
                include=["file_search_call.results"],
            )
            return [result.filename for result in response.output[0].results or ()]  # type: ignore[union-attr]

        assert set(found()) == {"hours.md", "bread.md"}
        only = {"type": "ne", "key": "source", "value": "bread.md"}
        assert found(filters=only) == ["hours.md"]
        assert found(filters={"type": "and", "filters": [only, only]}) == ["hours.md"]
        assert found(ranking_options={"score_threshold": 1.0}) == []

    def test_it_can_be_required(self, client: OpenAI, collection: str) -> None:
        response = create(
            client,
            'call search_collection {"query": "flour"}',
            tools=[self.tool(collection), WEATHER],
            tool_choice={"type": "file_search"},
        )
        assert [item.type for item in response.output] == ["file_search_call", "message"]
        refused = create(
            client,
            'call search_collection {"query": "flour"}',
            tools=[self.tool(collection)],
            tool_choice="none",
        )
        assert [item.type for item in refused.output] == ["message"]

    def test_no_calls_beyond_the_limit(self, client: OpenAI, collection: str) -> None:
        response = create(
            client,
            'call search_collection {"query": "flour"}',
            tools=[self.tool(collection)],
            max_tool_calls=0,
        )
        assert [item.type for item in response.output] == ["message"]


class TestRag:
    def test_an_answer_from_a_collection(self, raw: httpx.Client, collection: str) -> None:
        model = f"rag/{collection}"
        events = stream(raw, "When do you open?", model=model)
        response = checked(events[-1]["response"])
        assert response.model == model
        (message,) = response.output
        assert message.type == "message"
        (text,) = message.content
        assert text.type == "output_text"
        assert "We open at nine" in text.text
        assert text.annotations[0].type == "file_citation"
        assert text.annotations[0].filename == "hours.md"
        assert again(raw, response.id) == events

    def test_it_goes_on(self, client: OpenAI, collection: str, ollama: Wire) -> None:
        model = f"rag/{collection}/{MODEL}"
        first = create(client, "When?", model=model)
        second = create(client, "And why?", model=model, previous_response_id=first.id)
        said = [text for _, text in heard(ollama)]
        assert said[1] == "When?"
        create(client, "More.", previous_response_id=second.id)
        assert [text for _, text in heard(ollama)][0::2] == ["When?", "And why?", "More."]


class TestChains:
    def test_branches(self, client: OpenAI, ollama: Wire) -> None:
        first = create(client, "one", instructions="Rules.")
        second = create(client, "two", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        branch = create(client, "other", previous_response_id=first.id)
        create(client, "three", previous_response_id=second.id)
        assert [text for _, text in heard(ollama)] == ["one", "one", "two", "two", "three"]
        create(client, "more", previous_response_id=branch.id)
        assert [text for _, text in heard(ollama)] == ["one", "one", "other", "other", "more"]

    def test_input_items(self, client: OpenAI, raw: httpx.Client) -> None:
        first = create(client, 'call weather {"city": "Busan"}', tools=[WEATHER])
        (call,) = first.output
        assert call.type == "function_call"
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        second = create(client, [output], previous_response_id=first.id, tools=[WEATHER])
        body = raw.get(f"/responses/{second.id}/input_items", params={"order": "asc"}).json()
        valid(body, "ResponseItemList")
        items = ResponseItemList.model_validate(body).data
        assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
        assert items[1].call_id == items[2].call_id == call.call_id  # type: ignore[union-attr]
        page = client.responses.input_items.list(second.id, limit=2, order="asc")
        assert [item.id for item in page] == [item.id for item in items]
        newest = client.responses.input_items.list(second.id, limit=1)
        assert newest.data[0].id == items[-1].id

    def test_what_is_not_stored_cannot_be_named(self, client: OpenAI) -> None:
        response = create(client, "one", store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError, match="previous_response_id") as caught:
            create(client, "two", previous_response_id=response.id)
        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"

    def test_a_deleted_response_is_gone(self, client: OpenAI, raw: httpx.Client) -> None:
        response = create(client, "one")
        deleted = raw.delete(f"/responses/{response.id}").json()
        assert deleted == {"id": response.id, "object": "response", "deleted": True}
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(response.id)


class TestBackground:
    def test_it_is_polled(self, client: OpenAI) -> None:
        response = create(client, "count to 3", background=True)
        assert response.status == "queued"
        while response.status in ("queued", "in_progress"):
            response = client.responses.retrieve(response.id)
        assert response.status == "completed"
        assert response.output_text == "1 2 3"
        assert client.responses.cancel(response.id).status == "completed"

    def test_it_is_cancelled(self, client: OpenAI, raw: httpx.Client, ollama: Wire) -> None:
        ollama.behaviours["tiny"] = Behaviour(hang_after=3)
        response = create(client, "count to 30", background=True)
        cancelled = checked(raw.post(f"/responses/{response.id}/cancel").json())
        assert cancelled.status == "cancelled"
        assert client.responses.retrieve(response.id).status == "cancelled"
        assert types_of(again(raw, response.id))[-1] == "failed"

    def test_others_are_not_cancelled(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="background"):
            client.responses.cancel(create(client, "one").id)

    def test_a_client_that_goes_away_cancels_its_job(self, raw: httpx.Client, ollama: Wire) -> None:
        ollama.behaviours["tiny"] = Behaviour(hang_after=3)
        body = {"model": MODEL, "input": "count to 30", "stream": True}
        with raw.stream("POST", "/responses", json=body) as answer:
            first = next(line for line in answer.iter_lines() if line.startswith("data: "))
        id_ = json.loads(first.removeprefix("data: "))["response"]["id"]
        while raw.get(f"/responses/{id_}").json()["status"] == "in_progress":
            pass
        assert raw.get(f"/responses/{id_}").json()["status"] == "cancelled"


def test_too_long_an_input_is_refused_or_cut(client: OpenAI) -> None:
    items = [
        {"role": "user", "content": "word " * 3000},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "more"},
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, items)
    assert caught.value.code == "context_length_exceeded"
    assert create(client, items, truncation="auto").output_text == "more"


def test_prompts_fill_in_for_input(client: OpenAI, raw: httpx.Client) -> None:
    root = str(raw.base_url).partition("/openai")[0]
    put = httpx.put(f"{root}/v1/prompts/greet", json={"template": "Hello {name}"}, trust_env=False)
    assert put.status_code < 300, put.text
    prompt: Any = {"id": "greet", "version": "1", "variables": {"name": "Kim"}}
    response = client.responses.create(model=MODEL, prompt=prompt)
    assert response.output_text == "Hello Kim"
    assert response.prompt is not None
    assert response.prompt.id == "greet"


class TestConversations:
    def test_turns_of_a_conversation(self, client: OpenAI, ollama: Wire) -> None:
        greeting: Any = [{"type": "message", "role": "user", "content": "Hello."}]
        talk = client.conversations.create(items=greeting, metadata={"topic": "a"})
        valid(talk.model_dump(), "ConversationResource")
        first = create(client, "one", conversation=talk.id)
        assert first.conversation is not None
        assert first.conversation.id == talk.id
        create(client, "two", conversation={"id": talk.id}, instructions="Rules.")
        assert heard(ollama)[0] == ("system", "Rules.")
        create(client, "three", conversation=talk.id)
        said = ["Hello.", "one", "one", "two", "two", "three"]
        assert [text for _, text in heard(ollama)] == said
        create(client, "branch", previous_response_id=first.id)
        assert [text for _, text in heard(ollama)] == [*said[:3], "branch"]
        items = list(client.conversations.items.list(talk.id, order="asc"))
        assert [item.content[0].text for item in items] == [*said, "three"]  # type: ignore[union-attr, index]

    def test_items_are_added_listed_and_removed(self, client: OpenAI, raw: httpx.Client) -> None:
        talk = client.conversations.create()
        call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
        new: Any = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            call,
            {"type": "function_call_output", "call_id": "c1", "output": "d"},
        ]
        added = client.conversations.items.create(talk.id, items=new)
        assert [item.type for item in added.data] == [
            "message", "message", "function_call", "function_call_output",
        ]  # fmt: skip
        path = f"/conversations/{talk.id}/items"
        listed = raw.get(path).json()
        valid(listed, "ConversationItemList")
        assert [item["id"] for item in reversed(listed["data"])] == [i.id for i in added.data]
        kept = str(added.data[1].id)
        item = client.conversations.items.retrieve(kept, conversation_id=talk.id)
        assert item.content[0].text == "b"  # type: ignore[union-attr, index]
        client.conversations.items.delete(str(added.data[2].id), conversation_id=talk.id)
        client.conversations.items.delete(str(added.data[3].id), conversation_id=talk.id)
        assert [item.id for item in client.conversations.items.list(talk.id)] == [
            kept, added.data[0].id,
        ]  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            client.conversations.items.retrieve("msg_1", conversation_id=talk.id)

    def test_it_is_changed_and_deleted(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match=r"'conv_0+'; start one with POST /openai"):
            client.conversations.retrieve(f"conv_{'0' * 32}")
        talk = client.conversations.create()
        changed = client.conversations.update(talk.id, metadata={"topic": "b"})
        assert changed.metadata == {"topic": "b"}
        assert client.conversations.retrieve(talk.id) == changed
        assert client.conversations.delete(talk.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.conversations.retrieve(talk.id)


def test_the_snippets_of_the_docs(
    client: OpenAI, collection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their order, as one program."""
    text = (ROOT / "docs" / "clients" / "openai-responses.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    program = "\n".join(snippets).replace("http://127.0.0.1:8000/openai/v1", str(client.base_url))
    program = program.replace("ollama/llama3.2", MODEL).replace("handbook", collection)
    names: dict[str, Any] = {}
    exec(compile(program, "openai-responses.md", "exec"), names)
    names["client"].close()
    assert "Tell me a story." in capsys.readouterr().out


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": []}, "input", "at least 1"),
    ({"input": ""}, "input", "without a text"),
    ({"max_output_tokens": 10**6}, "max_output_tokens", "SLUICE_MAX_TOKENS_LIMIT"),
    ({"model": "gpt-5"}, "model", "ollama/tiny"),
    ({"prompt": {"id": "nowhere"}}, "prompt", "nowhere"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]},
     "input", "images are not supported"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}]},
     "input", "vector store"),
    ({"input": [{"type": "web_search_call", "id": "a"}]}, "input", "file_search_call"),
    ({"input": [{"role": "assistant", "content": "a"}]}, "input", "must end with"),
    ({"tools": [{"type": "web_search"}]}, "tools", "function, file_search"),
    ({"tools": [{"type": "code_interpreter", "container": {}}]}, "tools", "file_search"),
    ({"tools": [{"type": "file_search", "vector_store_ids": ["nowhere"]}]}, "tools", "nowhere"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "'f'"),
    ({"temperature": 3}, "temperature", "2"),
    ({"top_logprobs": 21}, "top_logprobs", "20"),
    ({"max_output_tokens": 0}, "max_output_tokens", "1"),
    ({"reasoning": {"effort": "high"}}, "reasoning", "not supported"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format", "schema"),
    ({"background": True, "store": False}, "store", "background"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "no response"),
    ({"conversation": "conv_1"}, "conversation", "no conversation"),
    ({"moderation": {"model": "a"}}, "moderation", "not supported"),
    ({"metadata": {"a": 1}}, "metadata", "string"),
    ({"stop": ["a"]}, "stop", "no such field"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
def test_what_is_not_supported_is_refused(
    fields: dict[str, Any], param: str, words: str, raw: httpx.Client
) -> None:
    answer = raw.post("/responses", json={"model": MODEL, "input": "Hello"} | fields)
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert param in (error["param"] or error["message"])
