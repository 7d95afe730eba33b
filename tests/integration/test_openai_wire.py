"""OpenAI's API with its own client over a socket, sync and async: real jobs of tiny real models.

Each answer is checked by the client's types, and by the whole description where
SLUICE_OPENAPI_DESCRIPTION names it.
"""

import asyncio
import base64
import json
import os
import struct
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from shared.config import Settings
from shared.jobs import jobs
from tests.integration.description import valid
from tests.integration.ingestion import new_collection
from tests.integration.job_runner import embedders, job_of
from tests.integration.thread_worker import ingest_texts, running_worker
from tests.tiny import crossencoder, voice, wav2vec2
from tests.tiny_lessons import TOOL_ANSWER, TOOL_RESULT
from tests.tiny_models import Answerer
from workers.attempts.process import Process

CHECKPOINTS = crossencoder.folder().parent
CAPITAL = "What is the capital of Korea?"
LONG = "Tell me a story."
NUMBERS = "Count to seventy."
CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Calculates.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.fixture(scope="module")
def model(answerer: Answerer) -> str:
    return f"hf/{answerer.path}"


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"sse_poll_s": 0.2, "hf_threads": 1, "models_folder": CHECKPOINTS.parent}
    )


@pytest.fixture(scope="module")
def worker(settings: Settings, model: str) -> Iterator[Process]:
    with running_worker(settings, model) as process:
        yield process


@pytest.fixture(scope="module")
def client(api_url: str, worker: Process) -> Iterator[OpenAI]:  # noqa: ARG001 (it answers)
    with OpenAI(
        base_url=f"{api_url}/openai/v1",
        api_key="none",
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def http(api_url: str, worker: Process) -> Iterator[httpx.Client]:  # noqa: ARG001 (it answers)
    with httpx.Client(base_url=f"{api_url}/openai/v1", timeout=60, trust_env=False) as client:
        yield client


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def chat(http: httpx.Client, model: str, text: str, **fields: Any) -> ChatCompletion:
    body = {"model": model, "messages": [user(text)]} | fields
    answer = http.post("/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    valid(answer.json(), "CreateChatCompletionResponse")
    return TypeAdapter(ChatCompletion).validate_python(answer.json(), strict=True)


def chunks(http: httpx.Client, path: str, name: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream, which has to end as streams do."""
    with http.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line[:1] == "d"]
    assert lines.pop() == "[DONE]"
    read = [json.loads(line) for line in lines]
    for chunk in read:
        # What a choice of `completions` has while it is not at its end, the description leaves out.
        for choice in chunk["choices"] if path == "/completions" else ():
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        valid(chunk, name)
    return read


def chat_chunks(http: httpx.Client, body: dict[str, Any]) -> list[ChatCompletionChunk]:
    read = chunks(http, "/chat/completions", "CreateChatCompletionStreamResponse", body)
    return [TypeAdapter(ChatCompletionChunk).validate_python(chunk) for chunk in read]


def refused(client: OpenAI, **fields: Any) -> tuple[int, str, str | None]:
    """Status, message and parameter of the error that a chat completion gets."""
    body: dict[str, Any] = {"messages": [user("a")], **fields}
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**body)
    error = raised.value.response.json()["error"]
    valid({"error": error}, "ErrorResponse")
    return raised.value.status_code, error["message"], error["param"]


class TestModels:
    def test_they_are_listed_and_found(self, client: OpenAI, worker: Process, model: str) -> None:
        collection = new_collection(worker)
        page = client.models.with_raw_response.list().http_response.json()
        valid(page, "ListModelsResponse")
        ids = [entry["id"] for entry in page["data"]]
        assert {model, f"rag/{collection}", worker.settings.embedding_model} <= set(ids)
        one = client.models.retrieve(f"rag/{collection}")
        assert isinstance(one, Model)
        assert one.created > 0
        assert client.models.retrieve(model).id == model

    def test_an_unknown_one_is_an_error_with_those_that_there_are(
        self, client: OpenAI, model: str
    ) -> None:
        with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-9'") as raised:
            client.models.retrieve("gpt-9")
        assert model in raised.value.message
        for name in ("gpt-9", "hf/nobody/has-it", "rag/nothing"):
            status, message, param = refused(client, model=name)
            assert (status, param) == (404, "model")
            assert model in message


class TestChat:
    def test_an_answer(self, http: httpx.Client, client: OpenAI, model: str) -> None:
        answer = chat(http, model, CAPITAL)
        assert answer.model == model
        choice = answer.choices[0]
        assert choice.message.content == "The capital of Korea is Seoul."
        assert choice.finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )
        again = client.chat.completions.create(model=model, messages=[user(CAPITAL)])
        assert again.choices[0].message.content == choice.message.content

    def test_parts_roles_and_what_changes_nothing(
        self, client: OpenAI, worker: Process, model: str
    ) -> None:
        parts: Any = [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]
        raw = client.chat.completions.with_raw_response.create(
            model=model,
            messages=[
                {"role": "developer", "content": "Be brief.", "name": "us"},
                {"role": "user", "content": parts},
            ],
            user="ann",
            store=True,
            metadata={"team": "a"},
            service_tier="auto",
            safety_identifier="x",
            prompt_cache_key="y",
            stream_options=None,
            tools=[],
            stop=None,
            n=None,
        )
        assert raw.parse().choices[0].message.content == "I am a tiny model."
        job_id = raw.headers["x-sluice-job-id"]
        job = job_of(worker, UUID(job_id))
        assert (job.kind, job.lane, job.meta) == ("chat", 0, {"team": "a"})

    def test_an_empty_answer_that_a_program_has_kept_is_passed_over(
        self, http: httpx.Client, model: str
    ) -> None:
        """As of one that broke off: it says nothing, and is no reason to refuse all later ones."""
        empties: list[dict[str, Any]] = [{"content": ""}, {"content": None}, {"tool_calls": []}]
        for empty in empties:
            messages = [user("Who are you?"), {"role": "assistant", **empty}, user(CAPITAL)]
            answer = chat(http, model, "", messages=messages)
            assert answer.choices[0].message.content == "The capital of Korea is Seoul."

    def test_max_tokens_and_stop(self, http: httpx.Client, model: str) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            cut = chat(http, model, NUMBERS, **{name: 5})
            assert cut.choices[0].finish_reason == "length"
            assert cut.usage is not None
            assert cut.usage.completion_tokens == 5
        for stop in (" 7", [" 9", " 7"]):
            ended = chat(http, model, NUMBERS, stop=stop)
            assert ended.choices[0].message.content == "1 2 3 4 5 6"
            assert ended.choices[0].finish_reason == "stop"

    def test_several_choices(self, http: httpx.Client, model: str) -> None:
        answer = chat(http, model, LONG, n=3, temperature=1.9, seed=7, max_tokens=20)
        texts = [choice.message.content for choice in answer.choices]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert len(set(texts)) > 1
        again = chat(http, model, LONG, n=3, temperature=1.9, seed=7, max_tokens=20)
        assert [choice.message.content for choice in again.choices] == texts
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 60

    def test_log_probabilities_are_those_of_the_model(self, http: httpx.Client, model: str) -> None:
        answer = chat(http, model, CAPITAL, logprobs=True, top_logprobs=3)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert "".join(entry.token for entry in logprobs.content) == (
            answer.choices[0].message.content
        )
        for entry in logprobs.content:
            best = entry.top_logprobs[0]
            assert (best.token, best.logprob) == (entry.token, entry.logprob), "greedy"
            assert [other.logprob for other in entry.top_logprobs] == sorted(
                (other.logprob for other in entry.top_logprobs), reverse=True
            )
            assert bytes(entry.bytes or []).decode() == entry.token

    def test_penalties_change_what_is_likely(self, http: httpx.Client, model: str) -> None:
        plain = chat(http, model, NUMBERS, max_tokens=12).choices[0].message.content
        for name in ("frequency_penalty", "presence_penalty"):
            other = chat(http, model, NUMBERS, max_tokens=12, **{name: 2.0})
            same = chat(http, model, NUMBERS, max_tokens=12, **{name: 0.0})
            assert same.choices[0].message.content == plain
            assert other.choices[0].message.content is not None

    def test_json(self, http: httpx.Client, model: str) -> None:
        formats: list[Any] = [
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
        ]
        for format_ in formats:
            answer = chat(http, model, "Give me a person as JSON.", response_format=format_)
            assert json.loads(answer.choices[0].message.content or "")["name"] == "Mina"
        wrong = {"type": "object", "required": ["wings"]}  # the model knows no such thing
        body = {
            "model": model,
            "messages": [user("Give me a person as JSON.")],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "bird", "schema": wrong},
            },
        }
        error = http.post("/chat/completions", json=body)
        assert error.status_code == 400
        assert error.headers["x-should-retry"] == "false"


class TestTools:
    question = user("What is 12*12?")

    @pytest.mark.parametrize(
        "choice",
        [
            None, "auto", "required",
            {"type": "function", "function": {"name": "calculator"}},
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "calculator"}}],
                },
            },
        ],
        ids=str,
    )  # fmt: skip
    def test_a_call_and_what_comes_of_it(self, client: OpenAI, model: str, choice: Any) -> None:
        fields: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
        answer = client.chat.completions.create(
            model=model, messages=[self.question], tools=[CALCULATOR], **fields
        )
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls is not None
        call = message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "calculator"
        assert json.loads(call.function.arguments) == {"expression": "12*12"}
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": TOOL_RESULT}
        sent_back: Any = message.model_dump(exclude_none=True)
        last = client.chat.completions.create(
            model=model, messages=[self.question, sent_back, result], tools=[CALCULATOR]
        )
        assert last.choices[0].message.content == TOOL_ANSWER

    def test_none_calls_none(self, client: OpenAI, model: str) -> None:
        answer = client.chat.completions.create(
            model=model, messages=[user(CAPITAL)], tools=[CALCULATOR], tool_choice="none"
        )
        assert answer.choices[0].message.tool_calls is None

    def test_in_a_stream(self, http: httpx.Client, model: str) -> None:
        body = {"model": model, "messages": [self.question], "tools": [CALCULATOR]}
        read = chat_chunks(http, body)
        assert read[-1].choices[0].finish_reason == "tool_calls"
        calls = [call for chunk in read for call in chunk.choices[0].delta.tool_calls or ()]
        assert [call.function.name for call in calls if call.function] == ["calculator"]
        assert not any(chunk.choices[0].delta.content for chunk in read), "no call is text"


class TestStreams:
    def test_text_usage_and_log_probabilities(self, http: httpx.Client, model: str) -> None:
        body = {
            "model": model,
            "messages": [user(LONG)],
            "n": 2,
            "temperature": 0,
            "logprobs": True,
            "stream_options": {"include_usage": True},
        }
        read = chat_chunks(http, body)
        whole = chat(http, model, LONG)
        for index in (0, 1):
            own = [choice for chunk in read for choice in chunk.choices if choice.index == index]
            assert own[0].delta.role == "assistant"
            text = "".join(choice.delta.content or "" for choice in own)
            assert text == whole.choices[0].message.content
            entries = [
                entry
                for choice in own
                if choice.logprobs
                for entry in choice.logprobs.content or ()
            ]
            assert "".join(entry.token for entry in entries) == text
            assert [choice.finish_reason for choice in own if choice.finish_reason] == ["stop"]
        assert read[-1].choices == []
        assert read[-1].usage is not None
        assert all(chunk.usage is None for chunk in read[:-1])

    def test_an_error_before_the_first_text_has_its_status(
        self, client: OpenAI, model: str
    ) -> None:
        with pytest.raises(openai.BadRequestError, match="tool_call_id"):
            client.chat.completions.create(
                model=model,
                messages=[user("a"), {"role": "tool", "tool_call_id": "x", "content": "b"}],
                stream=True,
            )

    def test_async(self, api_url: str, worker: Process, model: str) -> None:
        async def run() -> str:
            async with AsyncOpenAI(base_url=f"{api_url}/openai/v1", api_key="none") as client:
                answer = await client.chat.completions.create(
                    model=model, messages=[user(CAPITAL)], stream=True
                )
                texts = [chunk.choices[0].delta.content or "" async for chunk in answer]
                vectors = await client.embeddings.create(
                    model=worker.settings.embedding_model, input="a"
                )
                assert len(vectors.data[0].embedding) == 384
                return "".join(texts)

        assert asyncio.run(run()) == "The capital of Korea is Seoul."


class TestGoingAway:
    def cancelled(self, worker: Process, job_id: str) -> bool:
        """Waits for the job's end."""
        while (job := job_of(worker, UUID(job_id))).finished_at is None:
            pass
        return job.state == "cancelled"

    def test_a_stream_that_is_closed_ends_its_job(
        self, http: httpx.Client, worker: Process, model: str
    ) -> None:
        body = {"model": model, "messages": [user(NUMBERS)], "stream": True, "n": 8}
        with http.stream("POST", "/chat/completions", json=body) as answer:
            job_id = answer.headers["x-sluice-job-id"]
        assert self.cancelled(worker, job_id)

    def test_so_does_a_call_that_is_given_up(
        self, api_url: str, worker: Process, settings: Settings
    ) -> None:
        body = {"model": "ollama/none", "messages": [user("a")], "metadata": {"who": "gone"}}
        with httpx.Client(base_url=f"{api_url}/openai/v1", trust_env=False) as client:
            for headers in ({}, {"Idempotency-Key": "kept"}):
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/chat/completions", json=body, headers=headers, timeout=0.5)
        with worker.ledger.read() as session:
            rows = jobs.page(session, jobs.Filter(kind="chat"), limit=2, before=None)
        kept, gone = (job_of(worker, row.id) for row in rows)
        assert gone.meta == kept.meta == {"who": "gone"}
        assert self.cancelled(worker, str(gone.id))
        assert job_of(worker, kept.id).state in ("queued", "running")
        with worker.ledger.begin() as transaction:
            jobs.cancel(transaction, kept.id)
        assert settings.compat_wait_s > 0


class TestCompletions:
    def test_texts_go_on(self, client: OpenAI, http: httpx.Client, model: str) -> None:
        body = {
            "model": model, "prompt": ["<|im_start|>user\nSay yes.", "Once"], "n": 2,
            "max_tokens": 6, "temperature": 0, "logprobs": 2, "echo": False,
        }  # fmt: skip
        answer = http.post("/completions", json=body)
        valid(answer.json(), "CreateCompletionResponse")
        whole = TypeAdapter(Completion).validate_python(answer.json(), strict=True)
        assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
        assert whole.choices[0].text == whole.choices[1].text
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 24
        logprobs = whole.choices[0].logprobs
        assert logprobs is not None
        assert "".join(logprobs.tokens or []) == whole.choices[0].text
        one = client.completions.create(model=model, prompt="Once", echo=True, temperature=0)
        assert one.choices[0].text.startswith("Once")
        assert one.usage is not None
        assert one.usage.completion_tokens <= 16, "the default of the description"

    def test_in_a_stream(self, http: httpx.Client, model: str) -> None:
        body = {
            "model": model, "prompt": ["Once", "Twice"], "max_tokens": 8, "temperature": 0,
            "echo": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        whole = http.post("/completions", json=body).json()
        read = chunks(http, "/completions", "CreateCompletionResponse", body)
        for choice in whole["choices"]:
            own = [
                part["text"] for chunk in read for part in chunk["choices"]
                if part["index"] == choice["index"]
            ]  # fmt: skip
            assert "".join(own) == choice["text"]
        assert read[-1]["usage"] == whole["usage"]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"suffix": "b"}, "suffix"), ({"best_of": 3}, "best_of"), ({"prompt": []}, "prompt"),
            ({"echo": True, "logprobs": 1}, "echo"), ({"prompt": [1, 2]}, "prompt"),
            ({"max_tokens": 0}, "max_tokens"), ({"logprobs": 6}, "logprobs"),
        ],
        ids=str,
    )  # fmt: skip
    def test_what_is_refused(
        self, http: httpx.Client, model: str, fields: dict[str, Any], param: str
    ) -> None:
        answer = http.post("/completions", json={"model": model, "prompt": "a"} | fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


class TestEmbeddings:
    def test_the_model_s_own_vectors(self, client: OpenAI, http: httpx.Client) -> None:
        embedder = embedders().get()
        texts = ["We open at nine.", "아홉 시에 엽니다."]
        expected = embedder.encode(texts, between=lambda: None)
        for format_ in ("float", "base64"):
            body = {"model": embedder.name, "input": texts, "encoding_format": format_}
            answer = http.post("/embeddings", json=body).json()
            if format_ == "float":
                valid(answer, "CreateEmbeddingResponse")
                TypeAdapter(CreateEmbeddingResponse).validate_python(answer, strict=True)
                vectors = [entry["embedding"] for entry in answer["data"]]
            else:
                packed = [base64.b64decode(entry["embedding"]) for entry in answer["data"]]
                vectors = [struct.unpack("<384f", data) for data in packed]
            assert np.allclose(vectors, expected, atol=1e-6)
            assert answer["usage"]["prompt_tokens"] == sum(
                embedder.sizes(texts, is_query=False, between=lambda: None)
            )
        # Its strict types know no base64, which it asks for itself.
        lax = client.with_options(_extra_kwargs={"_strict_response_validation": False})
        many = lax.embeddings.create(model=embedder.name, input=[f"text {n}" for n in range(99)])
        assert [entry.index for entry in many.data] == list(range(99))

    def test_dimensions_are_for_models_that_allow_them(self, http: httpx.Client) -> None:
        name = embedders().get().name
        body: dict[str, Any] = {"model": name, "input": "a", "dimensions": 384}
        assert http.post("/embeddings", json=body).status_code == 200
        error = http.post("/embeddings", json=body | {"dimensions": 64}).json()["error"]
        assert error["param"] == "dimensions"
        assert "SLUICE_EMBEDDING_MATRYOSHKA_MODELS" in error["message"]

    @pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]], ids=str)
    def test_tokens_get_the_remedy(self, client: OpenAI, tokens: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            client.embeddings.create(model=embedders().get().name, input=tokens)


class TestAudio:
    said = "HELLO ALICE"

    def test_each_form(self, client: OpenAI) -> None:
        model = f"{CHECKPOINTS.name}/{wav2vec2.folder().name}"
        file = ("a.wav", voice.recorded(self.said))

        def ask(**fields: Any) -> Any:
            return client.audio.transcriptions.create(file=file, model=model, **fields)

        assert ask().text == self.said
        assert str(ask(response_format="text")).strip() == self.said
        whole = ask(response_format="verbose_json", timestamp_granularities=["word", "segment"])
        valid(whole.to_dict(), "CreateTranscriptionResponseVerboseJson")
        assert [word.word for word in whole.words] == self.said.split()
        assert whole.segments[0].text == self.said
        assert float(whole.duration) == pytest.approx(voice.length_s(self.said))
        srt = str(ask(response_format="srt"))
        assert srt.startswith("1\n00:00:0")
        assert f"\n{self.said}\n" in srt
        assert str(ask(response_format="vtt")).startswith("WEBVTT\n\n00:00:0")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"prompt": "names"}, "prompt"), ({"stream": "true"}, "stream"), ({"x": "1"}, "x"),
            ({"response_format": "diarized_json"}, "response_format"),
            ({"temperature": "7"}, "temperature"),
        ],
        ids=str,
    )  # fmt: skip
    def test_what_is_refused(self, http: httpx.Client, fields: dict[str, str], param: str) -> None:
        files = {"file": ("a.wav", voice.recorded("A"))}
        answer = http.post("/audio/transcriptions", data={"model": "m"} | fields, files=files)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param


def test_rerank_has_the_best_first(http: httpx.Client) -> None:
    query, best = next(iter(crossencoder.ANSWERS.items()))
    documents: list[Any] = [*reversed(crossencoder.ANSWERS.values()), {"text": "Tea is hot."}]
    body = {
        "model": f"{CHECKPOINTS.name}/{crossencoder.folder().name}", "query": query,
        "documents": documents, "top_n": 2, "return_documents": True,
    }  # fmt: skip
    answer = http.post("/rerank", json=body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == 2
    assert results[0]["document"]["text"] == best
    assert documents[results[0]["index"]] == best
    assert 0 <= results[1]["relevance_score"] <= results[0]["relevance_score"] <= 1


@pytest.fixture(scope="module")
def museum(api_url: str, worker: Process) -> str:  # noqa: ARG001 (it ingests)
    texts = {"hours.md": "The museum opens at ten.", "tea.md": "Tea is hot."}
    return ingest_texts(api_url, "museum", texts)


class TestDocuments:
    """A model `rag/<collection>`."""

    question = "When does the museum open?"

    def test_it_quotes_with_citations(
        self, http: httpx.Client, client: OpenAI, museum: str
    ) -> None:
        model = f"rag/{museum}"
        answer = chat(http, model, self.question, temperature=0.2, max_tokens=50)
        message = answer.choices[0].message
        assert "opens at ten" in (message.content or "")
        assert message.annotations
        citation = message.annotations[0].url_citation
        assert (message.content or "")[citation.start_index : citation.end_index] == "[1]"
        assert citation.title == "hours.md"
        found = httpx.get(citation.url, trust_env=False)
        assert found.json()["source"] == "hours.md"
        body = {"model": model, "messages": [user(self.question)]}
        read = chat_chunks(http, body)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in read)
        assert text == message.content
        last = [chunk.choices[0].delta.model_extra or {} for chunk in read]
        assert [
            delta["annotations"][0]["url_citation"]["title"]
            for delta in last
            if "annotations" in delta
        ] == ["hours.md"]
        assert client.models.retrieve(model).id == model

    def test_a_model_behind_it_answers_with_what_was_said_before(
        self, client: OpenAI, museum: str, model: str
    ) -> None:
        answer = client.chat.completions.create(
            model=f"rag/{museum}/{model}",
            messages=[
                {"role": "system", "content": "Be brief."},
                user("Who are you?"),
                {"role": "assistant", "content": "I am a tiny model."},
                user(self.question),
            ],
        )
        assert answer.choices[0].message.content == "The museum opens at ten [1]."

    @pytest.mark.parametrize(
        "fields", [{"tools": [CALCULATOR]}, {"n": 2}, {"logprobs": True}, {"stop": "."}], ids=str
    )
    def test_what_is_refused(self, client: OpenAI, museum: str, fields: dict[str, Any]) -> None:
        status, _, param = refused(client, model=f"rag/{museum}", **fields)
        assert (status, param) == (400, next(iter(fields)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role"),
        (
            {"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]},  # type: ignore[arg-type]
            "messages.0.content",
        ),
        (
            {"messages": [user([{"type": "input_audio", "input_audio": {}}])]},  # type: ignore[arg-type]
            "messages.0.content",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages"),
        ({"messages": [user("a\0b")]}, "messages.0.content"),
        (
            {"messages": [user("a"), {"role": "tool", "tool_call_id": "x", "content": "b"}]},
            "messages.1",
        ),
        ({"model": ""}, "model"), ({"model": "rag/"}, "model"), ({"model": "rag//a"}, "model"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "wings"}},
                }
            },
            "response_format",
        ),
        ({"n": 0}, "n"), ({"n": 129}, "n"), ({"temperature": 3}, "temperature"),
        ({"logit_bias": {"1": 2}}, "logit_bias"), ({"modalities": ["audio"]}, "modalities"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"top_logprobs": 2}, "top_logprobs"), ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CALCULATOR], "tool_choice": "any"}, "tool_choice"),
        ({"max_tokens": 10**7}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"tempreature": 1}}, "tempreature"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"web_search_options": {}}, "web_search_options"), ({"stop": ["a"] * 17}, "stop"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_is_not_supported_names_the_parameter(
    client: OpenAI, model: str, fields: dict[str, Any], param: str | None
) -> None:
    status, message, named = refused(client, **{"model": model, **fields})
    assert status == 400
    assert message
    if param is not None:
        assert named == param


def test_a_job_is_the_same_under_one_key(http: httpx.Client, model: str) -> None:
    body = {"model": model, "messages": [user("Say yes.")]}
    headers = {"Idempotency-Key": f"wire-{os.getpid()}"}
    first, again = (http.post("/chat/completions", json=body, headers=headers) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    other = http.post("/chat/completions", json=body | {"max_tokens": 3}, headers=headers)
    assert other.status_code == 409
