"""`sluice.langchain` against the API with a worker: LangChain's own suites, and what users write.

The model is a server that speaks Ollama's protocol, and calls each tool that it is offered.
"""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from shared.config import Settings
from shared.kinds.chat import ChatInput
from sluice import Client, ConfigurationError, InvalidInput, JobFailed, Unprocessable
from sluice.langchain import ChatSluice, SluiceEmbeddings, SluiceRetriever, SluiceVectorStore
from tests.api_server import served
from tests.integration.thread_worker import running_worker
from tests.wire.behaviour import Behaviour, Wire

ROOT = Path(__file__).resolve().parents[2]
MODEL = "ollama/tiny"
OTHER = "ollama/other"
TEXTS = ["Cats sleep most of the day.", "Trains leave every hour.", "We open at nine."]


@pytest.fixture(scope="module", autouse=True)
def url(settings: Settings, wire: Wire) -> Iterator[str]:
    """Of the API, with a worker behind it; programs find it in the environment."""
    wire.behaviours["tiny"] = wire.behaviours["other"] = Behaviour(is_obliging=True)
    wire.models["other"] = {}
    changed = settings.model_copy(update={"ollama_url": wire.url})
    with (
        served(changed) as url,
        running_worker(changed, ollama_url=wire.url),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SLUICE_URL", url)
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def handbook(client: Client) -> str:
    """A collection of three documents."""
    name = f"langchain-{uuid4().hex[:12]}"
    texts = {f"{n}.md": text for n, text in enumerate(TEXTS)}
    report = client.ingest(name, texts=texts, metadata={"team": "a"})
    assert report.documents.added == len(TEXTS)
    return name


class TestChatUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSluice

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"SLUICE_API_KEY": "a key", "SLUICE_URL": "http://127.0.0.1:1"},
            {"model": MODEL},
            {"api_key": "a key", "url": "http://127.0.0.1:1"},
        )


class TestChat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSluice

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL}

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return OTHER

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return "tool_choice" in ChatInput.model_fields


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return SluiceEmbeddings

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return ({"SLUICE_API_KEY": "a key"}, {}, {"api_key": "a key"})


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return SluiceEmbeddings


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _collection(self, handbook: str) -> None:
        self._handbook = handbook

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return SluiceRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"collection": self._handbook}

    @property
    def retriever_query_example(self) -> str:
        return "How long do cats sleep?"


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        store = SluiceVectorStore(f"langchain-{uuid4().hex[:12]}")
        yield store
        store.delete_collection()


# What the page shows


BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_every_block_of_the_page_runs(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    wire.models["llama3.2"] = {}
    wire.behaviours["llama3.2"] = Behaviour(is_obliging=True)
    page = (ROOT / "docs" / "clients" / "langchain.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(page)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "langchain.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "1 2 3 4 5" in printed
    assert [call["args"] for call in names["calls"]] == [{"a": 3, "b": 3}]
    assert names["city"].people == 9
    names["store"].delete_collection()


# What a common tutorial does, with nothing changed but the constructors


@pytest.fixture(scope="module")
def pets() -> Iterator[SluiceVectorStore]:
    documents = [
        Document(
            page_content="Dogs are great companions, known for their loyalty and friendliness.",
            metadata={"source": "mammal-pets-doc"},
        ),
        Document(
            page_content="Cats are independent pets that often enjoy their own space.",
            metadata={"source": "mammal-pets-doc"},
        ),
        Document(
            page_content="Goldfish are popular pets for beginners, requiring simple care.",
            metadata={"source": "fish-pets-doc"},
        ),
        Document(
            page_content="Parrots are intelligent birds capable of mimicking human speech.",
            metadata={"source": "bird-pets-doc"},
        ),
    ]
    store = SluiceVectorStore.from_documents(
        documents, embedding=SluiceEmbeddings(), collection=f"pets-{uuid4().hex[:12]}"
    )
    yield store
    store.delete_collection()


def test_the_tutorial_on_models(wire: Wire) -> None:
    wire.requests.clear()
    model = ChatSluice(model=MODEL)
    messages = [SystemMessage("Translate from English into Italian"), HumanMessage("hi!")]
    parser = StrOutputParser()
    assert parser.invoke(model.invoke(messages)) == "hi!"
    assert (model | parser).invoke(messages) == "hi!"
    template = ChatPromptTemplate.from_messages(
        [("system", "Translate the following into {language}:"), ("user", "{text}")]
    )
    chain = template | model | parser
    assert chain.invoke({"language": "italian", "text": "count to 3"}) == "1 2 3"
    sent = wire.bodies("/api/chat")[-1]["messages"]
    assert sent[0] == {"role": "system", "content": "Translate the following into italian:"}
    assert "".join(chain.stream({"language": "italian", "text": "count to 9"})).endswith(" 9")
    assert model.invoke("count to 9", stop=[" 4"]).content == "1 2 3"
    assert model.invoke("count to 9", max_tokens=2).response_metadata["finish_reason"] == "length"


def test_the_tutorial_on_vector_stores(pets: SluiceVectorStore) -> None:
    [cats] = pets.similarity_search("cat", k=1)
    assert cats.page_content.startswith("Cats")
    assert cats.metadata == {"source": "mammal-pets-doc"}
    [(best, score), *others] = pets.similarity_search_with_score("cat", k=3)
    assert best == cats
    assert all(1 >= score >= other for _, other in others)
    assert (
        pets.similarity_search("cat", filter={"source": "fish-pets-doc"})[0].page_content[:8]
        == "Goldfish"
    )
    vector = SluiceEmbeddings().embed_query("cat")
    assert pets.similarity_search_by_vector(vector, k=1) == [cats]
    assert pets.max_marginal_relevance_search_by_vector(vector, k=2, fetch_k=4)[0] == cats
    with pytest.raises(JobFailed, match="384"):
        pets.similarity_search_by_vector([1.0, 2.0])
    with pytest.raises(Unprocessable, match="a vector is for the types"):
        pets.search(vector, "hybrid")  # type: ignore[arg-type]
    retriever: Runnable[str, list[Document]]
    retriever = RunnableLambda(pets.similarity_search).bind(k=1)
    rows = retriever.batch(["cat", "goldfish"])
    assert [[document.page_content[:4] for document in row] for row in rows] == [
        ["Cats"],
        ["Gold"],
    ]
    retriever = pets.as_retriever(search_type="similarity", search_kwargs={"k": 1})
    rows = retriever.batch(["cat", "goldfish"])
    assert [[document.page_content[:4] for document in row] for row in rows] == [
        ["Cats"],
        ["Gold"],
    ]
    mmr = pets.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 4})
    assert len(mmr.invoke("cat")) == 2
    least = score - 1e-6
    strict = pets.as_retriever(
        search_type="similarity_score_threshold",
        search_kwargs={"score_threshold": least, "k": 4},
    )
    assert strict.invoke("cat") == [cats]
    assert len(pets.as_retriever(search_kwargs={"k": 3}).invoke("cat")) == 3
    words = pets.as_retriever(search_type="lexical", search_kwargs={"k": 1})
    assert words.invoke("goldfish")[0].page_content.startswith("Goldfish")


def test_the_tutorial_on_rag(pets: SluiceVectorStore) -> None:
    model = ChatSluice(model=MODEL)
    prompt = ChatPromptTemplate.from_messages(
        [("human", "Answer this question using the provided context only.\n{question}\n{context}")]
    )
    retriever = pets.as_retriever(search_kwargs={"k": 1})
    chain = {"context": retriever, "question": RunnablePassthrough()} | prompt | model
    assert "Cats are independent" in str(chain.invoke("tell me about cats").content)
    answers = create_stuff_documents_chain(
        model, ChatPromptTemplate.from_template("{context}\n{input}")
    )
    answer = create_retrieval_chain(retriever, answers).invoke({"input": "tell me about cats"})
    assert answer["answer"].startswith("Cats are independent")
    assert [document.metadata for document in answer["context"]] == [{"source": "mammal-pets-doc"}]


# What the suites do not look at


def test_a_stream_that_is_left_cancels_its_job(client: Client, wire: Wire) -> None:
    wire.of("tiny").delay_s = 0.01
    stream = ChatSluice(model=MODEL).stream("count to 1000")
    assert str(next(stream).content).startswith("1")
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    wire.of("tiny").delay_s = 0
    assert client.wait(next(client.jobs(kind="chat")).id).state == "cancelled"


def test_a_task_that_is_cancelled_cancels_its_job(client: Client, wire: Wire) -> None:
    wire.of("tiny").delay_s = 0.01

    async def main() -> None:
        task = asyncio.create_task(ChatSluice(model=MODEL).ainvoke("count to 2000"))
        while wire.running == 0:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wire.of("tiny").delay_s = 0
    assert client.wait(next(client.jobs(kind="chat")).id).state == "cancelled"


def test_what_cannot_be_done_is_refused_with_a_remedy(handbook: str) -> None:
    model = ChatSluice(model=MODEL)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(InvalidInput, match="text alone"):
        model.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, image])])
    with pytest.raises(TypeError, match="parameters="):
        model.invoke("hi", mirostat=1)
    with pytest.raises(Unprocessable, match="temperature"):
        model.invoke("hi", temperature=9)
    with pytest.raises(JobFailed, match="nosuch"):
        ChatSluice(model="ollama/nosuch").invoke("hi")
    with pytest.raises(InvalidInput, match="none of auto"):
        model.bind_tools(["calculator"], tool_choice="other").invoke("hi")
    with pytest.raises(ConfigurationError, match="embeds texts itself"):
        SluiceVectorStore(handbook, DeterministicFakeEmbedding(size=3))
    with pytest.raises(ConfigurationError, match="has the embedding model"):
        SluiceVectorStore(handbook, SluiceEmbeddings(model="other/model")).similarity_search("a")
    with pytest.raises(ValueError, match="score_threshold"):
        SluiceRetriever(collection=handbook, search_type="similarity_score_threshold")
    with pytest.raises(TypeError, match="no option 'topk'"):
        SluiceRetriever(collection=handbook).invoke("a", topk=3)
    with pytest.raises(InvalidInput, match="Text number 1 is empty"):
        SluiceVectorStore(handbook).add_texts(["a", " "])
    with pytest.raises(Unprocessable, match="metadata"):
        SluiceVectorStore(handbook).add_texts(["a"], [{"loc": {"line": 1}}])


def test_a_store_over_documents_that_came_otherwise(handbook: str) -> None:
    store = SluiceVectorStore(handbook)
    [cats] = store.similarity_search("How long do cats sleep?", k=1)
    assert cats.metadata["source"] == "0.md"
    assert cats.metadata["team"] == "a"
    assert store.get_by_ids([str(cats.id)]) == [cats]
    with pytest.raises(InvalidInput, match="delete_document"):
        store.delete([str(cats.id)])
    [same] = SluiceRetriever(collection=[handbook], k=1).invoke("How long do cats sleep?")
    assert (same.id, same.metadata["source"]) == (cats.id, "0.md")
    assert 0 < same.metadata["score"] <= 1


def test_a_text_is_kept_as_it_is(client: Client) -> None:
    store = SluiceVectorStore(f"texts-{uuid4().hex[:12]}")
    texts = ["<b>bold</b>\n\na,b\n1,2", "  spaces around  ", "안녕하세요" * 200]
    ids = ["page.html", "table.csv", "한 글/ä?&#"]
    assert store.add_texts(texts, [{"source": "own", "media_type": "x"}, {}, {}], ids=ids) == ids
    documents = store.get_by_ids([*reversed(ids), "missing", ""])
    assert [(one.id, one.page_content) for one in documents] == [*zip(ids, texts, strict=True)][
        ::-1
    ]
    assert documents[2].metadata == {"source": "own", "media_type": "x"}
    store.add_texts([texts[0]], [{"source": "new"}], ids=ids[:1], batch_size=1)
    assert store.get_by_ids(ids[:1])[0].metadata == {"source": "new"}
    assert store.delete([ids[0], "missing"])
    assert [one.id for one in store.get_by_ids(ids)] == ids[1:]
    assert store.delete()
    assert store.similarity_search("spaces") == []
    store.delete_collection()
    assert store.collection not in [one.name for one in client.collections()]
