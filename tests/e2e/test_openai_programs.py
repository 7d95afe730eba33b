"""Programs written for OpenAI's API run here with another base URL: every call of its own SDK, sync
and async, langchain-openai, litellm and llama-index, on the stack that users have.

Each answer is checked by the SDK's strict types, and by the published description where
SLUICE_OPENAPI_DESCRIPTION names it (`tests/integration/description.py`). What each call can do is
tried in `tests/integration/test_openai_*.py`.
"""

import asyncio
import base64
import gc
import inspect
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.generators import GenerationWorker
from tests.e2e.stack import ROOT, LiveStack
from tests.e2e.tasks import SPOKEN, sound
from tests.integration.description import check, check_async
from tests.tiny import crossencoder
from tests.tiny.zoo import MODELS
from tests.tiny_lessons import (
    GROUNDED,
    QUESTIONS,
    SEARCH_ANSWER,
    SEARCH_QUESTION,
    TOOL_ANSWER,
    TOOL_CALL,
    TOOL_QUESTION,
    TOOL_RESULT,
)
from tests.tiny_models import Answerer

EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
WHISPER = "openai/whisper-tiny"
RANKER = "cross-encoder/ms-marco-MiniLM-L6-v2"
CAPITAL = "What is the capital of Korea?"
SEOUL = QUESTIONS[CAPITAL]
LONGEST = "Count to seventy."
OPENING = "When does the museum open?"
HOURS = "The museum opens at ten."
"""What `museum.md` says."""

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:unclosed:ResourceWarning"
)


class Blocking:
    """An asynchronous client, used as its synchronous twin: each call is run to its end, and lists
    and streams are read."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return Blocking(value, self._runner)
        return lambda *args, **options: self._runner.run(_end(value(*args, **options)))


async def _end(value: Any) -> Any:
    if inspect.isawaitable(value) and not hasattr(value, "__aiter__"):
        value = await value
    return [entry async for entry in value] if hasattr(value, "__aiter__") else value


@contextmanager
def opened(url: str, *, is_async: bool, **options: Any) -> Iterator[Any]:
    """A client of that kind, each of whose answers is checked."""
    options |= {"base_url": url, "api_key": "none", "max_retries": 0, "timeout": 120}
    if not is_async:
        http = httpx2.Client(event_hooks={"response": [check]}, timeout=120)
        with OpenAI(http_client=http, **options) as client:
            yield client
        return
    # A loop that is not the current one: some of the programs close that.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        http_ = httpx2.AsyncClient(event_hooks={"response": [check_async]}, timeout=120)
        client_ = AsyncOpenAI(http_client=http_, **options)
        yield Blocking(client_, runner)
        runner.run(client_.close())


@pytest.fixture(scope="module")
def worker(live_stack: LiveStack, answerer: Answerer) -> Iterator[GenerationWorker]:
    for name in (WHISPER, RANKER):
        shutil.copytree(MODELS[name](), live_stack.home / "models" / name, dirs_exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sluice-worker-") as folder:
        worker = GenerationWorker(
            live_stack,
            f"hf/{answerer.path}",
            "tiny-openai",
            Path(folder) / "log",
            SLUICE_GENERATION_THREADS="1",
        )
        worker.until_ready()
        yield worker
        worker.stop()


@pytest.fixture(scope="module")
def url(live_stack: LiveStack, worker: GenerationWorker) -> str:  # noqa: ARG001 (it answers)
    return f"{live_stack.noted.api_url}/openai/v1"


@pytest.fixture(scope="module")
def model(answerer: Answerer) -> str:
    return f"hf/{answerer.path}"


@pytest.fixture(scope="module")
def museum(live_stack: LiveStack, url: str) -> str:  # noqa: ARG001 (it has workers)
    """A collection that says when the museum opens."""
    with live_stack.client() as client:
        client.ingest("museum-hours", texts={"museum.md": HOURS, "tea.md": "Tea is hot."})
    return "museum-hours"


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Any]:
    with opened(url, is_async=request.param, _strict_response_validation=True) as client:
        yield client


def user(text: str) -> Any:
    return {"role": "user", "content": text}


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Calculates.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    }
]


PERSON: Any = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def test_models(client: Any, model: str, museum: str) -> None:
    ids = {entry.id for entry in client.models.list()}
    assert {model, f"rag/{museum}", EMBEDDING_MODEL} <= ids
    assert client.models.retrieve(f"rag/{museum}").created > 0
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-9")
    assert model in raised.value.message


class TestChat:
    def test_an_answer(self, client: Any, model: str) -> None:
        answer = client.chat.completions.create(
            model=model, messages=[user(CAPITAL)], n=2, seed=7, temperature=0, stop=["!", "?"],
            logprobs=True, top_logprobs=2, max_completion_tokens=50, metadata={"a": "b"},
        )  # fmt: skip
        assert [choice.message.content for choice in answer.choices] == [SEOUL, SEOUL]
        entries = answer.choices[1].logprobs.content
        assert "".join(entry.token for entry in entries) == SEOUL
        assert answer.usage.completion_tokens >= 2 * len(entries)

    def test_a_stream(self, client: Any, model: str) -> None:
        chunks = list(
            client.chat.completions.create(
                model=model, messages=[user(CAPITAL)], n=2, temperature=0, logprobs=True,
                stream=True, stream_options={"include_usage": True},
            )
        )  # fmt: skip
        for index in (0, 1):
            own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
            assert "".join(choice.delta.content or "" for choice in own) == SEOUL
            scored = [e for c in own if c.logprobs for e in c.logprobs.content or ()]
            assert "".join(entry.token for entry in scored) == SEOUL
        assert chunks[-1].usage.total_tokens > 0

    def test_tools(self, client: Any, model: str) -> None:
        question = user(TOOL_QUESTION)
        first = client.chat.completions.create(model=model, messages=[question], tools=TOOLS)
        message = first.choices[0].message
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments) == TOOL_CALL["arguments"]
        result = {"role": "tool", "tool_call_id": call.id, "content": TOOL_RESULT}
        last = client.chat.completions.create(
            model=model,
            messages=[question, message.model_dump(exclude_none=True), result],
            tools=TOOLS,
        )
        assert last.choices[0].message.content == TOOL_ANSWER

    def test_json(self, client: Any, model: str) -> None:
        messages = [user("Give me a person as JSON.")]
        formats: list[Any] = [
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
        ]
        for format_ in formats:
            answer = client.chat.completions.create(
                model=model, messages=messages, response_format=format_
            )
            assert json.loads(answer.choices[0].message.content)["name"] == "Mina"

    def test_from_documents(self, client: Any, model: str, museum: str) -> None:
        for name in (f"rag/{museum}", f"rag/{museum}/{model}"):
            answer = client.chat.completions.create(model=name, messages=[user(OPENING)])
            message = answer.choices[0].message
            assert "opens at ten" in message.content
            assert message.annotations[0].url_citation.title in ("museum.md", "tea.md")

    def test_errors(self, client: Any, model: str) -> None:
        picture = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}
        with pytest.raises(openai.BadRequestError, match="images are not supported") as raised:
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": [picture]}]
            )
        assert raised.value.param == "messages.0.content"
        with pytest.raises(openai.NotFoundError, match="There are: "):
            client.chat.completions.create(model="gpt-9", messages=[user("a")])


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def lax_client(request: pytest.FixtureRequest, url: str) -> Iterator[Any]:
    """For what the SDK's strict types do not know: vectors in base64, which it asks for itself, and
    choices of streamed completions before their end."""
    with opened(url, is_async=request.param) as client:
        yield client


def test_completions(client: Any, lax_client: Any, model: str) -> None:
    prompts = [f"<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\n", "Once"]
    options: Any = {
        "model": model, "prompt": prompts, "max_tokens": 40, "temperature": 0, "stop": "\n",
        "logprobs": 2,
    }  # fmt: skip
    whole = client.completions.create(**options)
    assert whole.choices[0].text == SEOUL
    assert "".join(whole.choices[0].logprobs.tokens) == SEOUL
    chunks = list(lax_client.completions.create(**options, stream=True))
    parts = [part for chunk in chunks for part in chunk.choices if part.index == 0]
    assert "".join(part.text for part in parts) == SEOUL


def test_embeddings(lax_client: Any) -> None:
    texts = ["We open at nine.", "아홉 시에 엽니다. 🌙"]
    ask = lax_client.embeddings.create
    usual, floats, packed = (
        ask(model=EMBEDDING_MODEL, input=texts, **options).data
        for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"})
    )
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        ask(model=EMBEDDING_MODEL, input=[[1, 2]])
    assert [entry.index for entry in usual] == [0, 1]
    for one, two, three in zip(usual, floats, packed, strict=True):
        assert math.hypot(*two.embedding) == pytest.approx(1, abs=1e-5)
        assert one.embedding == pytest.approx(two.embedding, abs=1e-6)
        data = base64.b64decode(three.embedding)
        assert struct.unpack("<384f", data) == pytest.approx(two.embedding, abs=1e-6)


class TestAudio:
    @pytest.mark.parametrize(
        ("form", "is_right"),
        [
            ("json", lambda answer: answer.text.strip() == SPOKEN),
            ("text", lambda answer: answer.strip() == SPOKEN),
            ("verbose_json", lambda answer: answer.segments[0].text.strip() == SPOKEN),
            ("srt", lambda answer: answer.startswith("1\n00:00:0") and SPOKEN in answer),
            ("vtt", lambda answer: answer.startswith("WEBVTT\n\n00:00:0") and SPOKEN in answer),
        ],
    )
    def test_each_form(self, client: Any, form: Any, is_right: Callable[[Any], bool]) -> None:
        answer = client.audio.transcriptions.create(
            file=("a.flac", sound()), model=WHISPER, response_format=form, language="en"
        )
        assert is_right(answer), answer


def test_rerank(client: Any) -> None:
    query, best = next(iter(crossencoder.ANSWERS.items()))
    documents = ["Tea is hot.", *reversed(crossencoder.ANSWERS.values())]
    body = {"model": RANKER, "query": query, "documents": documents, "top_n": 2}
    ranked: Any = client.post("/rerank", cast_to=object, body=body)
    first, _ = ranked["results"]
    assert documents[first["index"]] == best


class TestResponses:
    def test_text_streams_and_chains(self, client: Any, model: str) -> None:
        first = client.responses.create(model=model, input=CAPITAL, metadata={"a": "b"})
        assert first.output_text == SEOUL
        events = list(
            client.responses.create(
                model=model, input="Say yes.", previous_response_id=first.id, stream=True
            )
        )
        second = events[-1].response
        assert (events[-1].type, second.output_text) == ("response.completed", "Yes")
        replayed = list(client.responses.retrieve(second.id, stream=True, starting_after=2))
        assert replayed == events[3:]
        assert client.responses.retrieve(second.id) == second
        scored = list(
            client.responses.create(
                model=model, input=CAPITAL, stream=True, include=["message.output_text.logprobs"]
            )
        )
        deltas = [event for event in scored if event.type == "response.output_text.delta"]
        assert "".join(one.token for event in deltas for one in event.logprobs) == SEOUL
        again = list(client.responses.retrieve(scored[-1].response.id, stream=True))
        assert again == scored
        items = list(client.responses.input_items.list(second.id, order="asc"))
        assert [item.content[0].text for item in items] == [CAPITAL, SEOUL, "Say yes."]
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)

    def test_functions_and_json(self, client: Any, model: str) -> None:
        tools = [{"type": "function", "strict": True, **TOOLS[0]["function"]}]
        first = client.responses.create(model=model, input=TOOL_QUESTION, tools=tools)
        (call,) = first.output
        output = {"type": "function_call_output", "call_id": call.call_id, "output": TOOL_RESULT}
        last = client.responses.create(
            model=model, input=[output], previous_response_id=first.id, tools=tools
        )
        assert last.output_text == TOOL_ANSWER
        json_ = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
        person = client.responses.create(model=model, input="Give me a person as JSON.", text=json_)
        assert json.loads(person.output_text)["name"] == "Mina"

    def test_file_search_and_documents(self, client: Any, model: str, museum: str) -> None:
        answer = client.responses.create(
            model=model,
            input=SEARCH_QUESTION,
            tools=[{"type": "file_search", "vector_store_ids": [museum], "max_num_results": 1}],
            include=["file_search_call.results"],
        )
        search, message = answer.output
        assert search.queries == ["museum opening"]
        assert [result.text for result in search.results] == [HOURS]
        assert message.content[0].text == SEARCH_ANSWER
        cited = client.responses.create(model=f"rag/{museum}/{model}", input=OPENING)
        assert cited.output_text == GROUNDED[OPENING]
        assert cited.output[0].content[0].annotations[0].type == "file_citation"

    def test_in_the_background(self, client: Any, model: str, live_stack: LiveStack) -> None:
        done = client.responses.create(model=model, input=CAPITAL, background=True)
        while done.status in ("queued", "in_progress"):
            done = client.responses.retrieve(done.id)
        assert (done.status, done.output_text) == ("completed", SEOUL)
        with live_stack.http() as http:
            http.post("/v1/queues/generate/pause").raise_for_status()
            try:
                queued = client.responses.create(model=model, input=LONGEST, background=True)
                assert queued.status == "queued"
                assert client.responses.cancel(queued.id).status == "cancelled"
            finally:
                http.post("/v1/queues/generate/resume").raise_for_status()
        assert client.responses.retrieve(queued.id).status == "cancelled"

    def test_conversations(self, client: Any, model: str) -> None:
        talk = client.conversations.create(items=[user(CAPITAL)], metadata={"topic": "a"})
        answer = client.responses.create(model=model, input="Say yes.", conversation=talk.id)
        assert answer.conversation.id == talk.id
        added = client.conversations.items.create(talk.id, items=[user("Thanks. 고마워요")])
        texts = [
            item.content[0].text
            for item in client.conversations.items.list(talk.id, order="asc", limit=2)
        ]
        assert texts == [CAPITAL, "Say yes.", "Yes", "Thanks. 고마워요"]
        (item,) = added.data
        assert client.conversations.items.retrieve(item.id, conversation_id=talk.id) == item
        client.conversations.items.delete(item.id, conversation_id=talk.id)
        changed = client.conversations.update(talk.id, metadata={"topic": "b"})
        assert client.conversations.retrieve(talk.id) == changed
        assert len(list(client.conversations.items.list(talk.id))) == 3
        assert client.conversations.delete(talk.id).deleted


def test_files_and_vector_stores(client: Any) -> None:
    names = ("hours.md", "tea.md", "cats.md")
    texts = (HOURS, "Green tea is brewed at eighty degrees.", "Cats sleep fifteen hours a day.")
    ids = [
        client.files.create(file=(name, text.encode()), purpose="assistants").id
        for name, text in zip(names, texts, strict=True)
    ]
    assert client.files.content(ids[0]).text == HOURS
    assert [entry.id for entry in list(client.files.list(limit=2))[:3]] == ids[::-1]
    assert client.files.retrieve(ids[1]).filename == "tea.md"

    store = client.vector_stores.create(
        name="안내", file_ids=ids[:1], expires_after={"anchor": "last_active_at", "days": 1}
    )
    client.vector_stores.files.poll(ids[0], vector_store_id=store.id, poll_interval_ms=20)
    file = client.vector_stores.files.create_and_poll(
        ids[1], vector_store_id=store.id, attributes={"year": 2024}, poll_interval_ms=20
    )
    assert (file.status, file.attributes) == ("completed", {"year": 2024})
    batch = client.vector_stores.file_batches.create_and_poll(
        store.id, file_ids=ids[2:], attributes={"year": 2020}, poll_interval_ms=20
    )
    assert (batch.status, batch.file_counts.completed) == ("completed", 1)
    assert client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id) == batch
    of_batch = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert [entry.id for entry in of_batch] == ids[2:]
    cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert cancelled.status == "completed", "it had ended"
    assert [entry.id for entry in client.vector_stores.files.list(store.id, limit=1)] == ids[::-1]

    def found(**options: Any) -> list[str]:
        hits = client.vector_stores.search(store.id, query="how long do cats sleep?", **options)
        return [hit.filename for hit in hits]

    assert found(max_num_results=1) == ["cats.md"]
    assert found(filters={"type": "gte", "key": "year", "value": 2024}) == ["tea.md"]
    client.vector_stores.files.update(ids[2], vector_store_id=store.id, attributes={"year": 2025})
    assert found(filters={"type": "eq", "key": "year", "value": 2025}) == ["cats.md"]
    content = client.vector_stores.files.content(ids[2], vector_store_id=store.id)
    assert "".join(part.text for part in content) == texts[2]
    assert client.vector_stores.files.retrieve(ids[2], vector_store_id=store.id).usage_bytes > 0

    assert client.vector_stores.update(store.id, name="Guide").name == "Guide"
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 3
    assert store.id in [entry.id for entry in client.vector_stores.list(limit=1)]
    assert client.vector_stores.files.delete(ids[2], vector_store_id=store.id).deleted
    assert "cats.md" not in found()
    assert client.vector_stores.delete(store.id).deleted
    assert all(client.files.delete(id_).deleted for id_ in ids)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(ids[0])


# Programs of others.


@pytest.fixture
def kept_clients() -> Iterator[None]:
    """These programs keep clients for ever; what they leave open must not trouble other tests."""
    yield
    if "litellm" in sys.modules:
        sys.modules["litellm"].in_memory_llm_clients_cache.flush_cache()
        with suppress(RuntimeError):  # there is none
            asyncio.get_event_loop_policy().get_event_loop().close()
            asyncio.set_event_loop(None)
    for name in ("_cached_async_httpx_client", "_cached_sync_httpx_client"):
        cached = getattr(sys.modules.get("langchain_openai.chat_models._client_utils"), name, None)
        if cached is not None:
            cached.cache_clear()
    gc.collect()


@pytest.mark.usefixtures("kept_clients")
def test_langchain(url: str, model: str) -> None:
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from pydantic import SecretStr

    @tool
    def calculator(expression: str) -> str:
        """Calculates."""
        return TOOL_RESULT if expression == "12*12" else "?"

    key = SecretStr("none")
    llm = ChatOpenAI(base_url=url, api_key=key, model=model, temperature=0)
    assert llm.invoke(CAPITAL).content == SEOUL
    assert "".join(str(chunk.content) for chunk in llm.stream(CAPITAL)) == SEOUL
    assert asyncio.run(llm.ainvoke(CAPITAL)).content == SEOUL
    assert [answer.content for answer in llm.batch(["Say yes.", CAPITAL])] == ["Yes", SEOUL]
    question, with_tools = HumanMessage(TOOL_QUESTION), llm.bind_tools([calculator])
    called: Any = with_tools.invoke([question])
    result = calculator.invoke(called.tool_calls[0])
    assert with_tools.invoke([question, called, result]).content == TOOL_ANSWER
    scored = llm.bind(logprobs=True, top_logprobs=1).invoke(CAPITAL)
    assert len(scored.response_metadata["logprobs"]["content"]) == 7
    by_responses = ChatOpenAI(base_url=url, api_key=key, model=model, use_responses_api=True)
    assert by_responses.invoke(CAPITAL).text == SEOUL
    embed = OpenAIEmbeddings(
        openai_api_base=url,
        openai_api_key=key,
        model=EMBEDDING_MODEL,
        check_embedding_ctx_length=False,
    )
    assert embed.embed_query("a") == pytest.approx(embed.embed_documents(["a", "b"])[0], abs=1e-6)


@pytest.mark.usefixtures("kept_clients")
def test_litellm(url: str, model: str, museum: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # fetches nothing
    litellm = pytest.importorskip("litellm")
    ask: dict[str, Any] = {"api_base": url, "api_key": "none"}
    answer = litellm.completion(model=f"openai/{model}", messages=[user(CAPITAL)], **ask)
    assert answer.choices[0].message.content == SEOUL
    chunks = litellm.completion(
        model=f"openai/{model}", messages=[user(CAPITAL)], stream=True, **ask
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SEOUL
    quoted = litellm.completion(model=f"openai/rag/{museum}", messages=[user(OPENING)], **ask)
    assert "opens at ten" in quoted.choices[0].message.content
    vectors = litellm.embedding(
        model=f"openai/{EMBEDDING_MODEL}", input=["a"], encoding_format="float", **ask
    )
    assert len(vectors.data[0]["embedding"]) == 384
    ranked = litellm.rerank(
        model=f"cohere/{RANKER}", query="cats", documents=["a cat", "tax"],
        api_base=f"{url}/rerank", api_key="none",
    )  # fmt: skip
    assert len(ranked.results) == 2


def snippets(page: str, url: str, model: str) -> str:
    """Those of a page of `docs/clients`, in their order, as one program for this stack."""
    text = (ROOT / "docs/clients" / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert "ollama/llama3.2" in code
    return code.replace("http://127.0.0.1:8000/openai/v1", url).replace("ollama/llama3.2", model)


@pytest.mark.usefixtures("kept_clients")
@pytest.mark.parametrize("page", ["openai.md", "litellm.md"])
def test_the_snippets_of_a_page_run(
    page: str, live_stack: LiveStack, url: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with live_stack.client() as client:
        client.ingest("handbook", texts={"hours.md": "We open at nine."})
    scope: dict[str, Any] = {}
    exec(compile(snippets(page, url, model), page, "exec"), scope)
    assert scope["answer"].choices[0].message.content


@pytest.fixture(scope="module")
def llama_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages that want `openai` below 3, and run with the one that is pinned;
    their own needs are in the extra `dev`."""
    pytest.importorskip("llama_index.embeddings.openai_like", reason="pip install '.[dev]'")
    folder = tmp_path_factory.mktemp("llama-index")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "install"]
    names = ["llama-index-llms-openai", "llama-index-llms-openai-like"]
    pinned = ["--no-deps", "--target", str(folder), "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run([*pip, "-q", *pinned, *names], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip does not get llama-index-llms-openai-like: {done.stderr[-500:]}")
    return folder


def test_llama_index(llama_index: Path, url: str, model: str) -> None:
    """The snippets of its page, as one program."""
    code = snippets("llama-index.md", url, model)
    done = subprocess.run(
        [sys.executable, "-"],
        input=code,
        env={**os.environ, "PYTHONPATH": str(llama_index)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [SEOUL, f"{SEOUL}{TOOL_ANSWER}", "2"]
