"""A LangChain program on a collection of Sluice's: retriever | prompt | model | parser."""

from collections.abc import Callable

import chromadb
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from examples.langchain_model import GeneratorChatModel
from shared.vector_stores import require_store
from tests.integration.ingestion import ingest, new_collection
from tests.wire.behaviour import Wire
from workers.attempts.process import Process
from workers.generation.backends.interface import generators_of
from workers.retrieval.embed import embedders_of


@pytest.fixture
def process(talker: Callable[..., Process]) -> Process:
    return talker()


class OwnEmbeddings(Embeddings):
    """The embedding model of the worker."""

    def __init__(self, process: Process) -> None:
        self._embedder = embedders_of(process).get()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.encode(texts, between=lambda: None).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_a_chain_answers_from_a_collection(process: Process, wire: Wire) -> None:
    name = new_collection(process)
    ingest(process, name, {"cats": "Cats sleep fifteen hours a day.", "trains": "Trains run."})
    (url,) = require_store(process.settings).urls
    store = Chroma(
        client=chromadb.HttpClient(host=url.host, port=url.port or 80),
        collection_name=name,
        embedding_function=OwnEmbeddings(process),
    )

    def joined(documents: list[Document]) -> str:
        return " ".join(document.page_content for document in documents)

    prompt = ChatPromptTemplate.from_messages([("human", "{context} Q: {question}")])
    model = GeneratorChatModel(generator=generators_of(process).get("ollama/tiny"))
    retriever = store.as_retriever(search_kwargs={"k": 1})
    chain = (
        {"context": retriever | RunnableLambda(joined), "question": RunnablePassthrough()}
        | prompt
        | model
        | StrOutputParser()
    )

    message = "Cats sleep fifteen hours a day. Q: How long do cats sleep?"
    assert chain.invoke("How long do cats sleep?") == message
    assert "".join(chain.stream("How long do cats sleep?")) == message
    assert wire.bodies("/api/chat")[0]["messages"] == [{"role": "user", "content": message}]
