"""Programs of others that speak OpenAI's API, unmodified: LangChain, litellm, llama-index.

llama-index wants an older `openai` than the one that is pinned here, so its test runs where
somebody has installed it, and is skipped elsewhere.
"""

import asyncio
import gc
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shared.config import Settings
from tests.integration.answering import answering, ingested
from tests.integration.workbench import embedders
from tests.tiny_lessons import TOOL_ANSWER
from tests.tiny_models import Answerer
from workers.attempts.process import Process

ROOT = Path(__file__).resolve().parents[2]
CAPITAL = "What is the capital of Korea?"
SEOUL = "The capital of Korea is Seoul."

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:unclosed:ResourceWarning"
)


@pytest.fixture(autouse=True)
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


@pytest.fixture(scope="module")
def model(answerer: Answerer) -> str:
    return f"hf/{answerer.path}"


@pytest.fixture(scope="module")
def worker(settings: Settings, model: str) -> Iterator[Process]:
    with answering(settings, model) as process:
        yield process


@pytest.fixture(scope="module")
def base_url(api_url: str, worker: Process) -> str:  # noqa: ARG001 (it answers)
    return f"{api_url}/openai/v1"


def test_langchain_chats(base_url: str, model: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    @tool
    def calculator(expression: str) -> str:
        """Calculates."""
        return str(eval(expression, {"__builtins__": {}}))

    llm = ChatOpenAI(base_url=base_url, api_key=SecretStr("none"), model=model, temperature=0)
    assert llm.invoke(CAPITAL).content == SEOUL
    assert "".join(str(chunk.content) for chunk in llm.stream(CAPITAL)) == SEOUL
    assert [answer.content for answer in llm.batch(["Say yes.", CAPITAL])] == ["Yes", SEOUL]
    question = HumanMessage("What is 12*12?")
    called: Any = llm.bind_tools([calculator]).invoke([question])
    result: ToolMessage = calculator.invoke(called.tool_calls[0])
    last = llm.bind_tools([calculator]).invoke([question, called, result])
    assert last.content == TOOL_ANSWER
    scored = llm.bind(logprobs=True, top_logprobs=1).invoke(CAPITAL)
    assert len(scored.response_metadata["logprobs"]["content"]) == 7


def test_langchain_embeds(base_url: str) -> None:
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    name = embedders().get().name
    model = OpenAIEmbeddings(
        openai_api_base=base_url,
        openai_api_key=SecretStr("none"),
        model=name,
        check_embedding_ctx_length=False,
    )
    vectors = model.embed_documents(["a", "b"])
    assert [len(vector) for vector in vectors] == [384, 384]
    assert model.embed_query("a") == pytest.approx(vectors[0], abs=1e-6)


def test_litellm(base_url: str, model: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # fetches nothing
    litellm = pytest.importorskip("litellm")
    ask: dict[str, Any] = {"api_base": base_url, "api_key": "none"}
    messages = [{"role": "user", "content": CAPITAL}]
    answer = litellm.completion(model=f"openai/{model}", messages=messages, **ask)
    assert answer.choices[0].message.content == SEOUL
    chunks = litellm.completion(model=f"openai/{model}", messages=messages, stream=True, **ask)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SEOUL
    ingested(base_url.removesuffix("/openai/v1"), "museum", {"a.md": "The museum opens at ten."})
    messages = [{"role": "user", "content": "When does the museum open?"}]
    quoted = litellm.completion(model="openai/rag/museum", messages=messages, **ask)
    assert "opens at ten" in quoted.choices[0].message.content
    name = embedders().get().name
    vectors = litellm.embedding(model=f"openai/{name}", input=["a"], encoding_format="float", **ask)
    assert len(vectors.data[0]["embedding"]) == 384


def test_llama_index(base_url: str, model: str) -> None:
    like = pytest.importorskip("llama_index.llms.openai_like", reason="wants openai < 3")
    llm = like.OpenAILike(
        model=model, api_base=base_url, api_key="none", is_chat_model=True, temperature=0
    )
    assert str(llm.complete(CAPITAL)) == SEOUL
    assert "".join(part.delta or "" for part in llm.stream_complete(CAPITAL)) == SEOUL


@pytest.mark.parametrize("page", ["openai.md", "litellm.md"])
def test_the_snippets_of_a_page_run(
    page: str, base_url: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    api_url = base_url.removesuffix("/openai/v1")
    ingested(api_url, "handbook", {"hours.md": "We open at nine."})
    text = (ROOT / "docs/clients" / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert "ollama/llama3.2" in code
    code = code.replace("http://127.0.0.1:8000", api_url).replace("ollama/llama3.2", model)
    scope: dict[str, Any] = {}
    exec(compile(code, page, "exec"), scope)
    assert scope["answer"].choices[0].message.content
