"""Search: what is found, in what order, with which scores; LangChain on the same store."""

from collections.abc import Sequence

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings as ChromaSettings
from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings

from shared.documents import erasure
from shared.errors import NotFound
from shared.kinds import registry as kinds
from shared.kinds.search import SearchOptions, SearchType
from shared.vocabulary import Queue
from tests.integration.erasures import erase
from tests.integration.ingestion import (
    document_id,
    hits_of,
    ingest,
    new_collection,
    order,
    search,
    stores_agree,
)
from tests.integration.job_runner import claimed, drain, embedders, handlers, job_of, submit
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.ingest import erasure as erasing
from workers.models.devices import Vectors
from workers.retrieval.servers import store_of
from workers.retrieval.store import VectorEntry

TEXTS = {
    "cats": "Cats sleep for most of the day.",
    "trains": "The train to Busan leaves at nine in the morning.",
    "bread": "Bread is baked from flour, water, salt and yeast.",
    "stars": "A star is a ball of hot gas held together by gravity.",
}


@pytest.mark.parametrize("distance", ["cosine", "l2", "ip"])
def test_scores_are_cosines_and_fall_whatever_the_distance(process: Process, distance: str) -> None:
    collection = new_collection(process, distance=distance)
    ingest(process, collection, TEXTS)
    query = "When does the train to Busan leave?"

    hits = search(process, collection, query, search={"type": "similarity"})

    assert hits[0].source == "trains"
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    vectors = embedders().get().encode([query, *(hit.text for hit in hits)], between=lambda: None)
    assert scores == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-3)


def test_k_is_the_number_of_hits_and_fewer_where_there_are_fewer(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)

    assert len(search(process, collection, "star", k=2)) == 2
    assert len(search(process, collection, "star", k=100)) == 4


@pytest.mark.parametrize("dimension", [None, 384])
def test_a_collection_in_which_nothing_was_ever_ingested_has_no_hits(
    process: Process, dimension: int | None
) -> None:
    collection = new_collection(process, dimension=dimension)

    assert search(process, collection, "anything") == []


def test_a_collection_whose_documents_were_all_erased_has_no_hits(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": TEXTS["cats"]})
    id_ = document_id(process, collection, "cats")
    submit(process, kinds.ERASE, {"document_ids": [str(id_)]})
    drain(process)

    assert search(process, collection, "cats") == []


def test_a_search_in_an_unknown_collection_fails_and_says_what_to_do(process: Process) -> None:
    job_id = submit(process, kinds.SEARCH, {"collection": "unknown", "query": "q"})
    drain(process)

    job = job_of(process, job_id)
    assert (job.state, job.dead) == ("failed", False)
    assert job.error is not None
    assert "PUT /v1/collections/unknown" in job.error["message"]


def test_vectors_without_live_text_do_not_take_the_place_of_hits(process: Process) -> None:
    """The ten best matches of Chroma have no chunk in Postgres; the hits lie behind them."""
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    query = "When does the train leave?"
    vector = embedders().get().encode([query], between=lambda: None)
    entries = [VectorEntry(id=f"orphan-{n}", text="gone", metadata={"n": n}) for n in range(10)]
    store_of(process).upsert(collection, entries, np.repeat(vector, 10, axis=0))

    hits = search(process, collection, query, k=2)

    assert [hit.source for hit in hits][:1] == ["trains"]
    assert len(hits) == 2


def test_the_document_list_follows_the_ledger_and_not_the_store(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    with process.ledger.read() as session:
        assert erasure.garbage(session, limit=10) == []
    stores_agree(process, collection)


class Adapter(Embeddings):
    """What a LangChain program would use; here the very model of the workers."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = embedders().get().encode(texts, between=lambda: None).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_langchain_opens_the_collection_and_finds_the_same(
    process: Process, chroma_url: str
) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS, metadata={"team": "zoo"})
    host, _, port = chroma_url.removeprefix("http://").partition(":")
    client = chromadb.HttpClient(
        host=host, port=int(port), settings=ChromaSettings(anonymized_telemetry=False)
    )
    opened = Chroma(collection, embedding_function=Adapter(), client=client)

    for query in ("When does the train leave?", "How is bread made?"):
        ours = search(process, collection, query, k=2, search={"type": "similarity"})
        theirs = opened.similarity_search_with_score(query, k=2)

        assert [document.page_content for document, _ in theirs] == [hit.text for hit in ours]
        assert theirs[0][0].metadata["source"] == ours[0].source
        assert theirs[0][0].metadata["team"] == "zoo"
        assert theirs[0][0].metadata["start_index"] == ours[0].start
        assert 1 - theirs[0][1] == pytest.approx(ours[0].score, abs=1e-4)
    assert len(opened.similarity_search("x", k=9, filter={"team": "zoo"})) == 4
    assert opened.similarity_search("x", k=9, filter={"team": "rail"}) == []


def test_an_answer_quotes_what_is_there_and_cites_it(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    input_ = {"collection": collection, "question": "When does the train to Busan leave?"}
    job_id = submit(process, kinds.RAG, input_)
    drain(process)

    job = job_of(process, job_id)
    assert job.state == "succeeded", job.error
    assert job.result is not None
    assert "leaves at nine" in job.result["answer"]
    assert job.result["model"] == "extractive"
    (citation,) = [
        citation for citation in job.result["citations"] if citation["source"] == "trains"
    ]
    assert citation["marker"] in job.result["answer"]
    assert citation["text"] == TEXTS["trains"]


def test_text_that_is_erased_between_finding_and_answering_is_not_quoted(
    process: Process,
) -> None:

    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    input_ = {"collection": collection, "question": "When does the train to Busan leave?"}
    job_id = submit(process, kinds.RAG, input_)
    assert run_next(process, handlers(), "query")
    id_ = document_id(process, collection, "trains")
    submit(process, kinds.ERASE, {"document_ids": [str(id_)]})
    assert run_next(process, handlers(), "control")
    drain(process)

    job = job_of(process, job_id)
    assert job.state == "succeeded", job.error
    assert job.result is not None
    assert "nine" not in job.result["answer"]
    assert "Nothing relevant" in job.result["answer"]
    assert job.result["citations"] == []


def test_text_that_is_replaced_between_finding_and_answering_is_not_quoted(
    process: Process,
) -> None:

    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    input_ = {"collection": collection, "question": "When does the train to Busan leave?"}
    job_id = submit(process, kinds.RAG, input_)
    assert run_next(process, handlers(), "query")
    order(process, collection, {"trains": "No trains run."})
    for queue in ("ingest", "ingest", "embed"):
        assert run_next(process, handlers(), queue)
    drain(process)

    result = job_of(process, job_id).result
    assert result is not None
    assert "nine" not in result["answer"]


def test_a_question_about_a_collection_that_is_being_erased_finds_no_collection(
    process: Process,
) -> None:

    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    input_ = {"collection": collection, "question": "When does the train to Busan leave?"}
    job_id = submit(process, kinds.RAG, input_)
    assert run_next(process, handlers(), "query")
    submit(process, kinds.ERASE, {"collection": collection})
    erasing.erase(Context(process, claimed(process, Queue.CONTROL)))
    assert run_next(process, handlers(), "generate")

    job = job_of(process, job_id)
    assert job.error is not None
    assert (job.state, job.error["type"], job.result) == ("failed", "NotFound", None)


def test_a_collection_that_is_erased_while_it_is_searched_is_not_called_lost(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    store = store_of(process)
    read = store.vectors

    def erased_before(name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        monkeypatch.undo()
        erase(process, collection=collection)
        return read(name, ids)

    monkeypatch.setattr(store, "vectors", erased_before)
    with pytest.raises(NotFound):
        hits_of(process, collection, "trains", k=3, options=SearchOptions(type=SearchType.MMR))
