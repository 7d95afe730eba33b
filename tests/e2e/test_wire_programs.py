"""Programs written for Ollama, Hugging Face, MCP and LangChain run here with another address, on
the stack that users have. An Ollama server and an MCP server stand behind it.

What each call can do is tried in tests/integration: test_compat_ollama.py, test_compat_tei.py,
test_mcp.py, test_mcp_tools.py, test_client_langchain.py, test_prompts.py.
"""

import asyncio
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from huggingface_hub import InferenceClient
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
)
from mcp import Client as McpClient

from sluice import Client
from sluice.langchain import ChatSluice, SluiceEmbeddings, SluiceRetriever, SluiceVectorStore
from tests.e2e.generators import GenerationWorker
from tests.e2e.stack import LiveStack
from tests.integration.mcp_server import Office
from tests.tiny import crossencoder
from tests.tiny.zoo import MODELS
from tests.tiny_lessons import GROUNDED, QUESTIONS
from tests.tiny_models import Answerer
from tests.wire.behaviour import Behaviour, Wire

BEHIND = "tiny"
"""A model of the Ollama server."""
OBLIGING = "obliging"
"""One that calls each tool that it is offered."""
CAPITAL = "What is the capital of Korea?"
SEOUL = QUESTIONS[CAPITAL]
OPENING = "When does the museum open?"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
RANKER = "cross-encoder/ms-marco-MiniLM-L6-v2"
GREEDY = {"temperature": 0, "num_predict": 64}
MODELFILE = """
# Of the museum.
FROM {model}
SYSTEM \"\"\"
당신은 박물관 안내원입니다.
\"\"\"
PARAMETER temperature 0
PARAMETER num_predict 64
"""
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def held(live_stack: LiveStack, wire: Wire, answerer: Answerer) -> Iterator[str]:
    """A model that a worker of the stack holds."""
    wire.models |= {BEHIND: {}, OBLIGING: {}}
    wire.behaviours[OBLIGING] = Behaviour(is_obliging=True)
    folder = live_stack.home / "models" / RANKER
    shutil.copytree(MODELS[RANKER](), folder, dirs_exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sluice-worker-") as log:
        worker = GenerationWorker(
            live_stack,
            f"hf/{answerer.path}",
            "tiny-wires",
            Path(log) / "log",
            SLUICE_GENERATION_THREADS="1",
        )
        worker.until_ready()
        yield f"hf/{answerer.path}"
        worker.stop()


@pytest.fixture(scope="module")
def url(live_stack: LiveStack, held: str) -> Iterator[str]:  # noqa: ARG001 (served)
    live_stack.until_whole()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUICE_URL", live_stack.noted.api_url)
        yield live_stack.noted.api_url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def museum(client: Client) -> Iterator[str]:
    texts = {
        "hours.md": "The museum opens at ten.",
        "price.md": "A ticket is nine euros.",
        "shop.md": "The shop sells postcards.",
        "cafe.md": "The cafe is on the roof.",
    }
    client.ingest("museum-notes", texts=texts, metadata={"year": 2026})
    yield "museum-notes"
    client.delete_collection("museum-notes")


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


# Ollama

Call = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def call(url: str, request: pytest.FixtureRequest) -> Iterator[Call]:
    """A call of Ollama's client by its name; of a stream, all parts."""
    if request.param == "sync":
        with ollama.Client(host=f"{url}/ollama", trust_env=False) as blocking:

            def now(name: str, *args: Any, **options: Any) -> Any:
                value = getattr(blocking, name)(*args, **options)
                return list(value) if inspect.isgenerator(value) else value

            yield now
        return
    with asyncio.Runner() as runner:
        client: Any = ollama.AsyncClient(host=f"{url}/ollama", trust_env=False)

        async def end(name: str, args: Any, options: Any) -> Any:
            value = await getattr(client, name)(*args, **options)
            return [part async for part in value] if inspect.isasyncgen(value) else value

        yield lambda name, *args, **options: runner.run(end(name, args, options))
        runner.run(client.close())


def test_every_call_of_the_ollama_client(call: Call, held: str, wire: Wire) -> None:
    said = call("chat", held, [user(CAPITAL)], options=GREEDY)
    assert (said.message.content, said.done_reason, said.model) == (SEOUL, "stop", held)
    assert min(said.total_duration, said.eval_duration, said.eval_count) > 0
    *parts, last = call("chat", held, [user(CAPITAL)], options=GREEDY, stream=True)
    assert "".join(part.message.content for part in parts) == SEOUL
    assert (last.done, last.message.content) == (True, "")
    cut = call("generate", held, CAPITAL, options={"temperature": 0, "num_predict": 2})
    assert (cut.done_reason, SEOUL.startswith(cut.response.strip())) == ("length", True)
    further = call("generate", held, "Who are you?", options=GREEDY, context=cut.context)
    assert further.response == QUESTIONS["Who are you?"]
    parts = call("generate", held, CAPITAL, options=GREEDY, stream=True)
    assert "".join(part.response for part in parts) == SEOUL
    assert call("generate", held).done_reason == "load"

    one = call("embed", "all-minilm", ["We open at nine.", "안녕"], keep_alive="5m")
    assert [len(vector) for vector in one.embeddings] == [384, 384]
    assert len(call("embeddings", "all-minilm", "We open at nine.").embedding) == 384

    wish = [user("Give me a person as JSON.")]
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    for form in ("json", schema):
        answer = call("chat", held, wish, format=form, options=GREEDY)
        assert json.loads(answer.message.content)["name"] == "Mina"
    with pytest.raises(ollama.ResponseError, match="keep_alive is 0"):
        call("chat", held, [user(CAPITAL)], keep_alive=0)
    assert call("chat", BEHIND, [user("count to 3")], keep_alive=0).message.content == "1 2 3"
    assert wire.bodies("/api/generate")[-1] == {"model": BEHIND, "stream": False, "keep_alive": 0}
    (called,) = call("chat", OBLIGING, [user("Add 3")], tools=[ADD]).message.tool_calls
    assert (called.function.name, called.function.arguments) == ("add", {"a": 3})

    assert {held, BEHIND, MINILM} <= {entry.model for entry in call("list").models}
    assert held in {entry.model for entry in call("ps").models}
    assert call("show", BEHIND).modelinfo["llama.context_length"] == 4096
    *_, end = call("pull", "newcomer", stream=True)
    assert end.status == "success"
    call("delete", "newcomer")
    assert "newcomer" not in wire.models
    with pytest.raises(ollama.ResponseError, match="model 'nosuch' not found") as refused:
        call("chat", "nosuch", [user("a")])
    assert refused.value.status_code == 404


def test_a_model_made_by_a_modelfile_is_used_everywhere(
    call: Call, held: str, url: str, client: Client
) -> None:
    with httpx.Client(base_url=f"{url}/ollama", trust_env=False, timeout=60) as http:
        body = {"model": "guide", "modelfile": MODELFILE.format(model=held), "stream": False}
        made = http.post("/api/create", content=json.dumps(body))  # as `curl -d` sends it
        assert made.json() == {"status": "success"}
        assert http.head("").status_code == 200
        assert http.get("/api/version").json().keys() == {"version"}
    assert call("create", "guide-2", from_="guide", parameters={"seed": 4}).status == "success"
    call("copy", "guide-2", "guide-3")
    shown = call("show", "guide-3")
    assert "당신은 박물관 안내원입니다." in shown.modelfile
    assert "seed" in shown.parameters
    for name in ("guide", "guide:latest", "guide-3"):
        assert call("chat", name, [user(CAPITAL)]).message.content == SEOUL
    job = client.submit(
        "chat", {"model": "guide", "messages": [{"role": "user", "content": CAPITAL}]}
    )
    assert job.wait().require_success().result["message"]["content"] == SEOUL
    for name in ("guide", "guide-2", "guide-3"):
        call("delete", name)
    assert not {entry.model for entry in call("list").models} & {"guide:latest", "guide-3:latest"}


def test_what_open_webui_sends(url: str, held: str, museum: str) -> None:
    """As its `routers/ollama.py`, `routers/openai.py` and `retrieval/utils.py` have it: requests
    with a content type and no body, the ids of users in headers, tags for tasks in bodies."""
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Bearer none",
        "X-OpenWebUI-User-Name": "Mina%20Kim",
        "X-OpenWebUI-User-Id": "7",
    }
    asked = [user(CAPITAL)]
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as http:
        assert http.get("/ollama/api/version").json()["version"]
        tags = {entry["model"]: entry for entry in http.get("/ollama/api/tags").json()["models"]}
        assert {held, BEHIND, f"rag/{museum}"} <= tags.keys()
        assert all("name" in entry for entry in tags.values())
        (loaded,) = [e for e in http.get("/ollama/api/ps").json()["models"] if e["name"] == held]
        assert datetime.fromisoformat(loaded["expires_at"])
        body = {"model": held, "messages": asked, "options": GREEDY, "stream": True}
        lines = http.post("/ollama/api/chat", content=json.dumps(body)).text.splitlines()
        assert "".join(json.loads(line)["message"]["content"] for line in lines) == SEOUL
        embed = {"input": ["a", "b"], "model": "all-minilm", "truncate": True}
        assert len(http.post("/ollama/api/embed", json=embed).json()["embeddings"]) == 2

        known = {entry["id"] for entry in http.get("/openai/v1/models").json()["data"]}
        assert {held, f"rag/{museum}"} <= known
        options = {"include_usage": True}
        body = {"model": held, "messages": asked, "stream": True, "stream_options": options}
        body |= {"temperature": 0, "max_tokens": 64}
        frames = http.post("/openai/v1/chat/completions", json=body).text.split("\n\n")
        assert frames[-2] == "data: [DONE]"
        chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
        texts = [c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"]]
        assert "".join(texts) == SEOUL
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        title = {"model": held, "messages": asked, "stream": False, "max_completion_tokens": 1000}
        answer = http.post("/openai/v1/chat/completions", json=title).json()
        assert answer["choices"][0]["message"]["content"] == SEOUL
        vectors = http.post("/openai/v1/embeddings", json={"input": ["a", "b"], "model": MINILM})
        assert [entry["index"] for entry in vectors.json()["data"]] == [0, 1]
        rag = {"model": f"rag/{museum}", "messages": [user(OPENING)], "stream": False}
        answer = http.post("/openai/v1/chat/completions", json=rag).json()
        assert "opens at ten" in answer["choices"][0]["message"]["content"]


# Hugging Face


def test_huggingface_hub_chats_on_the_url_of_a_model(url: str, held: str, museum: str) -> None:
    with InferenceClient(model=f"{url}/models/{held}", timeout=60) as hub:
        said = hub.chat_completion([user(CAPITAL)], max_tokens=64, temperature=0)
        assert said.choices[0].message.content == SEOUL
        stream = hub.chat_completion([user(CAPITAL)], max_tokens=64, temperature=0, stream=True)
        assert "".join(p.choices[0].delta.content or "" for p in stream if p.choices) == SEOUL
    with InferenceClient(base_url=f"{url}/models/rag/{museum}", timeout=60) as hub:
        said = hub.chat.completions.create(messages=[user(OPENING)])
        assert "opens at ten" in (said.choices[0].message.content or "")


def test_programs_of_text_embeddings_inference(url: str) -> None:
    texts = ["We open at nine.", "Tea is hot."]
    # `HuggingFaceEndpointEmbeddings` of langchain-huggingface makes this call.
    with InferenceClient(model=f"{url}/tei", timeout=60) as hub:
        vectors = hub.feature_extraction(texts)
    assert vectors.shape == (2, 384)
    query, ranked = list(crossencoder.ANSWERS.items())[2]
    with httpx.Client(base_url=f"{url}/tei", trust_env=False, timeout=120) as http:
        assert http.get("/info").json()["model_id"] == MINILM
        body = {
            "query": query,
            "texts": [*texts, str(ranked)],
            "return_text": True,
            "truncate": True,
        }
        rows = http.post("/rerank", json=body).json()
        assert [row["score"] for row in rows] == sorted((r["score"] for r in rows), reverse=True)
        pair = {"source_sentence": texts[0], "sentences": texts}
        scores = http.post("/similarity", json={"inputs": pair}).json()
        assert scores[0] == pytest.approx(1, abs=1e-3)
        refused = http.post("/embed_sparse", json={"inputs": "a"})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")


# MCP


def test_every_tool_by_the_client_of_mcp(url: str, held: str) -> None:
    async def work() -> None:
        async with McpClient(f"{url}/mcp") as mcp:

            async def result(tool: str, **arguments: Any) -> dict[str, Any]:
                answer = await mcp.call_tool(tool, arguments)
                assert not answer.is_error, answer.content
                assert isinstance(answer.structured_content, dict)
                return answer.structured_content

            tools = {tool.name for tool in (await mcp.list_tools()).tools}
            assert tools == {"search", "ask", "ingest_text", "list_collections", "get_job"}
            text = {"text": "The museum opens at ten.", "name": "hours.md", "create": True}
            stored = await result("ingest_text", collection="mcp-notes", **text)
            assert (stored["state"], stored["chunks"]) == ("succeeded", 1)
            found = await result("search", collection="mcp-notes", query="museum opens")
            assert found["hits"][0]["source"] == "hours.md"
            asked = await result("ask", collection="mcp-notes", question=OPENING, model=held)
            assert asked["answer"] == GROUNDED[OPENING]
            job = await result("get_job", job_id=asked["job_id"])
            assert job["result"]["answer"] == asked["answer"]
            names = [c["name"] for c in (await result("list_collections"))["collections"]]
            assert "mcp-notes" in names
            wrong = await mcp.call_tool("ask", {"collection": "mcp-notes", "question": "a", "k": 0})
            assert wrong.is_error

    asyncio.run(work())


def test_an_agent_uses_a_tool_of_a_server_that_is_set_up(client: Client, office: Office) -> None:
    office.calls.clear()
    said = [{"role": "user", "content": 'call office__add {"a": 2, "b": 3}'}]
    tools = [{"type": "mcp", "server": "office"}]
    job = client.submit_untyped(
        "chat", {"model": f"ollama/{BEHIND}", "messages": said, "tools": tools}
    )
    result = client.wait(job.id).require_success().result or {}
    assert office.calls == ["add"]
    (read,) = (step["content"] for step in result["steps"] if step["role"] == "tool")
    assert '"total": 5' in read


# Prompts


def test_prompts_are_used_in_their_versions(client: Client, held: str, museum: str) -> None:
    client.put_prompt("ask-guide", "What is the capital of {country}?")
    client.put_prompt("ask-guide", "Who are {whom}?")
    chat = {"model": held, "prompt": "ask-guide@1", "variables": {"country": "Korea"}}
    newest = {"model": held, "prompt": "ask-guide", "variables": {"whom": "you"}}
    for input_, answer in ((chat, SEOUL), (newest, QUESTIONS["Who are you?"])):
        job = client.wait(client.submit_untyped("chat", input_).id).require_success()
        assert (job.result or {})["message"]["content"] == answer
    template = "{tone} {context} {question}"
    client.put_prompt("guide-rag", template)
    rag = {"collection": museum, "question": CAPITAL, "model": held, "prompt": "guide-rag@1"}
    job = client.wait(client.submit_untyped("rag", rag | {"variables": {"tone": "{x}"}}).id)
    assert (job.require_success().input or {})["rendered"] == "{{x}} {context} {question}"
    client.roll_back_prompt("ask-guide", 1)
    assert client.prompt("ask-guide").version == 1
    for name in ("ask-guide", "guide-rag"):
        client.delete_prompt(name)


# LangChain


@pytest.mark.usefixtures("url")
class TestChat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSluice

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": f"ollama/{OBLIGING}"}

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return f"ollama/{BEHIND}"

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True


@pytest.mark.usefixtures("url")
class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[SluiceEmbeddings]:
        return SluiceEmbeddings


@pytest.mark.usefixtures("museum")
class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return SluiceRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"collection": "museum-notes"}

    @property
    def retriever_query_example(self) -> str:
        return OPENING


@pytest.mark.usefixtures("url")
def test_the_tutorial_of_langchain(held: str) -> None:
    """Each snippet with nothing changed but the constructors."""
    chat = ChatSluice(model=held, temperature=0, max_tokens=64)
    messages = [SystemMessage("Answer in one sentence."), HumanMessage(CAPITAL)]
    parser = StrOutputParser()
    assert parser.invoke(chat.invoke(messages)) == SEOUL
    template = ChatPromptTemplate.from_messages(
        [("system", "Answer in {language}."), ("user", "{text}")]
    )
    chain = template | chat | parser
    assert chain.invoke({"language": "English", "text": CAPITAL}) == SEOUL
    assert "".join(chain.stream({"language": "English", "text": CAPITAL})) == SEOUL

    documents = [
        Document("The museum opens at ten.", metadata={"source": "hours"}),
        Document("Cats are independent pets.", metadata={"source": "pets"}),
        Document("Goldfish are popular pets.", metadata={"source": "fish"}),
    ]
    store = SluiceVectorStore.from_documents(
        documents, embedding=SluiceEmbeddings(), collection="langchain-pets"
    )
    (cats,) = store.similarity_search("cat", k=1)
    assert cats.page_content == documents[1].page_content
    (best, score), *others = store.similarity_search_with_score("cat", k=3)
    assert best == cats
    assert all(score >= other for _, other in others)
    kinds: list[dict[str, Any]] = [
        {"search_type": "similarity", "search_kwargs": {"k": 1}},
        {"search_type": "mmr", "search_kwargs": {"k": 1, "fetch_k": 3}},
        {
            "search_type": "similarity_score_threshold",
            "search_kwargs": {"score_threshold": score - 1e-6, "k": 3},
        },
    ]
    for kind in kinds:
        assert store.as_retriever(**kind).invoke("cat") == [cats], kind
    retriever = store.as_retriever(search_kwargs={"k": 1})
    rows = retriever.batch(["cat", "goldfish"])
    assert [row[0].metadata["source"] for row in rows] == ["pets", "fish"]
    prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
    rag = {"context": retriever, "question": RunnablePassthrough()} | prompt
    assert "independent" in rag.invoke("cat").to_string()
    behind = ChatSluice(model=f"ollama/{BEHIND}")
    assert "Cats are independent" in (rag | behind | parser).invoke("tell me about cats")
    store.delete_collection()
