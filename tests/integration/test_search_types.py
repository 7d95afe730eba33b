"""The types of a search, and what else it can be asked for."""

from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from shared.kinds import registry as kinds
from shared.kinds.search import SearchInput, SearchOptions
from tests.integration.ingestion import hits_of, ingest, ingest_files, new_collection, search
from tests.integration.job_runner import drain, job_of, submit
from workers.attempts.process import Process
from workers.models.devices import Vectors
from workers.retrieval import search as searching
from workers.retrieval.search import SearchRequest, marginal_relevance
from workers.retrieval.servers import store_of
from workers.retrieval.store import Match, VectorEntry

TEXTS = {
    "cats": "Cats sleep for most of the day.",
    "kittens": "Cats sleep most of the day, too.",
    "trains": "The train to Busan leaves at nine in the morning.",
    "bread": "Bread is baked from flour, water, salt and yeast.",
    "stars": "A star is a ball of hot gas held together by gravity.",
}
QUERY = "How long does a cat sleep each day?"


@pytest.fixture
def collection(process: Process) -> str:
    name = new_collection(process)
    ingest(process, name, TEXTS)
    return name


def test_a_threshold_is_the_least_cosine_of_a_hit(process: Process, collection: str) -> None:
    nearest = search(process, collection, QUERY, k=5, search={"type": "similarity"})
    assert nearest[1].score > nearest[2].score
    threshold = (nearest[1].score + nearest[2].score) / 2

    hits = search(
        process, collection, QUERY, k=5,
        search={"type": "similarity_score_threshold", "score_threshold": threshold},
    )  # fmt: skip

    assert hits == nearest[:2]


def test_mmr_prefers_what_is_new_as_lambda_falls(process: Process, collection: str) -> None:
    def sources(lambda_mult: float) -> list[str]:
        options = {"type": "mmr", "lambda_mult": lambda_mult, "fetch_k": 5}
        return [hit.source for hit in search(process, collection, QUERY, k=2, search=options)]

    assert set(sources(1)) == {"cats", "kittens"}
    assert len({"cats", "kittens"} & set(sources(0))) == 1


def test_mmr_chooses_from_the_nearest_only(process: Process, collection: str) -> None:
    options = {"type": "mmr", "lambda_mult": 0, "fetch_k": 2}
    hits = search(process, collection, QUERY, k=2, search=options)
    assert {hit.source for hit in hits} == {"cats", "kittens"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_mmr_is_that_of_langchain(share: float) -> None:
    from langchain_core.vectorstores.utils import maximal_marginal_relevance

    random = np.random.default_rng(7)
    passages = random.normal(size=(40, 8)).astype(np.float32)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    query = random.normal(size=8).astype(np.float32)
    query /= np.linalg.norm(query)

    ours = marginal_relevance(query, passages, share=share, count=12)

    assert ours == maximal_marginal_relevance(query, list(passages), lambda_mult=share, k=12)


def test_several_queries_have_their_hits_in_their_order(
    process: Process, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [QUERY, "When does the train leave?", "What is bread made of?"]
    input_ = SearchInput(collection=collection, queries=queries, k=1).model_dump(mode="json")
    job_id = submit(process, kinds.SEARCH, input_)
    drain(process)

    job = job_of(process, job_id)
    assert job.result is not None
    results = job.result["results"]
    assert [result["query"] for result in results] == queries
    assert [result["hits"][0]["source"] for result in results][1:] == ["trains", "bread"]
    for result in results:
        (alone,) = search(process, collection, result["query"], k=1)
        assert result["hits"][0]["chunk_id"] == alone.chunk_id

    monkeypatch.setattr(searching, "QUERIES_AT_ONCE", 2)
    sizes: list[int] = []
    store = store_of(process)
    ask = store.query

    def noting(name: str, vectors: Vectors, **options: Any) -> list[list[Match]]:
        sizes.append(len(vectors))
        return ask(name, vectors, **options)

    monkeypatch.setattr(store, "query", noting)
    queries = [*queries[1:], "trains " + " ".join(f"word{n}" for n in range(1100))]
    for type_ in ("similarity", "mmr", "lexical", "hybrid"):
        options = SearchOptions(type=type_)
        request = SearchRequest(collections=[collection], queries=queries, k=1, options=options)
        answer = searching.search(process, request)
        assert [hits[0].source for hits in answer.hits[:2]] == ["trains", "bread"], type_
        assert len(answer.hits) == 3
        is_cut = [warning for warning in answer.warnings if "parts of words" in warning]
        assert all("The query 3 has" in warning for warning in is_cut)
        assert bool(is_cut) == (type_ in ("lexical", "hybrid"))
    assert max(sizes) == 2


def test_several_collections_are_one_list(process: Process, collection: str) -> None:
    other = new_collection(process)
    ingest(process, other, {"ships": "The ship to Jeju leaves at nine in the morning."})
    input_ = SearchInput(
        collections=[collection, other, collection], query="What leaves at nine?", k=3
    )
    job_id = submit(process, kinds.SEARCH, input_.model_dump(mode="json"))
    drain(process)

    job = job_of(process, job_id)
    assert job.result is not None
    hits = job.result["hits"]
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert {(hit["collection"], hit["source"]) for hit in hits[:2]} == {
        (collection, "trains"),
        (other, "ships"),
    }


UNJOINED = SearchOptions(join=False)
LINES = [f"Line {n} of the story tells of the {word}." for n, word in enumerate(
    ["harbour", "lantern", "violin", "orchard", "glacier", "compass", "teapot", "meadow"]
)]  # fmt: skip


def test_neighbours_are_joined_without_repeats(process: Process) -> None:
    collection = new_collection(process)
    text = "\n".join(LINES)
    splitter = {"type": "recursive", "chunk_size": 60, "chunk_overlap": 0}
    ingest(process, collection, {"story": text}, splitter=splitter)
    (alone,) = hits_of(process, collection, "the glacier", k=1)
    assert "glacier" in alone.text

    (hit,) = hits_of(process, collection, "the glacier", k=1, options=SearchOptions(expand=1))

    assert hit.chunk_id == alone.chunk_id
    assert hit.text.split() == " ".join(LINES[3:6]).split()
    assert text[hit.start :].startswith(LINES[3])


def test_hits_that_follow_each_other_become_one(process: Process) -> None:
    collection = new_collection(process)
    splitter = {"type": "recursive", "chunk_size": 60, "chunk_overlap": 20}
    text = "\n".join(LINES)
    ingest(process, collection, {"story": text, "letter": "A violin."}, splitter=splitter)
    query = "the violin and the orchard"
    alone = hits_of(process, collection, query, k=3, options=UNJOINED)
    parts = [hit for hit in alone if "violin" in hit.text or "orchard" in hit.text]
    assert [hit.source for hit in parts].count("story") == 2

    hits = hits_of(process, collection, query, k=3)

    assert len(hits) == 3
    whole = next(hit for hit in hits if "violin" in hit.text and "orchard" in hit.text)
    best = next(hit for hit in alone if hit.source == "story")
    assert (whole.chunk_id, whole.score) == (best.chunk_id, best.score)
    assert text[whole.start :].split()[: len(whole.text.split())] == whole.text.split()
    assert whole.span is not None
    assert LINES[2] in whole.text
    assert LINES[3] in whole.text


@pytest.mark.parametrize("k", range(1, 9))
def test_joining_takes_no_hit_away(process: Process, k: int) -> None:
    """A text of which there is nothing beside gives as many hits as it has chunks."""
    collection = new_collection(process)
    splitter = {"type": "recursive", "chunk_size": 60, "chunk_overlap": 20}
    text = "\n".join(LINES)
    ingest(process, collection, {"story": text}, splitter=splitter)

    hits = hits_of(process, collection, "the story of the teapot", k=k)

    alone = hits_of(process, collection, "the story of the teapot", k=9, options=UNJOINED)
    assert len(hits) == min(k, len(alone))
    assert len({hit.chunk_id for hit in hits}) == len(hits)
    for hit in hits:
        assert text[hit.start :].split()[: len(hit.text.split())] == hit.text.split()
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_rows_of_a_table_stay_hits_of_their_own(process: Process) -> None:
    collection = new_collection(process)
    rows = "\n".join(f"{n},a lantern of brass" for n in range(1, 9))
    ingest_files(process, collection, {"stock.csv": f"id,thing\n{rows}".encode()})

    hits = hits_of(process, collection, "a brass lantern", k=4)

    assert [hit.text.count("lantern") for hit in hits] == [1, 1, 1, 1]


def test_expanded_hits_are_whole_parts_of_their_document(process: Process) -> None:
    collection = new_collection(process)
    splitter = {"type": "recursive", "chunk_size": 80, "chunk_overlap": 39}
    text = "\n".join(LINES * 3)
    ingest(process, collection, {"story": text}, splitter=splitter)

    hits = hits_of(process, collection, "the story", k=9, options=SearchOptions(expand=2))

    ids = [hit.chunk_id for hit in hits]
    assert len(ids) == len(set(ids))
    for hit in hits:
        part = text[hit.start :]
        assert part.split()[: len(hit.text.split())] == hit.text.split()


def test_a_filter_finds_what_an_index_of_neighbours_does_not_reach(process: Process) -> None:
    """Among very many equal vectors Chroma's index loses others, also where it is asked by id."""
    name = new_collection(process)
    ingest(process, name, {"bread": TEXTS["bread"]}, metadata={"kind": "one"})
    equal = np.zeros((600, 384), dtype=np.float32)
    equal[:, 0] = 1
    entries = [
        VectorEntry(id=f"{uuid4()}:{n}", text="the same", metadata={"n": n})
        for n in range(len(equal))
    ]
    store_of(process).upsert(name, entries, equal)

    for type_ in ("similarity", "mmr"):
        hits = search(process, name, "cats", search={"type": type_, "filter": {"kind": "one"}})
        assert [hit.source for hit in hits] == ["bread"]
