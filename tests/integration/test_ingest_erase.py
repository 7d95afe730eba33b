"""Erasure: gone from both stores and from every answer, counted, and room for new."""

import threading

import pytest
from sqlalchemy import text

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.documents import collections, documents
from shared.documents.collections import Spec
from shared.errors import Conflict, NotFound
from shared.tables import new_id
from shared.vocabulary import Queue
from tests.integration.erasures import PUBLIC, SECRET, erase, order_erasure
from tests.integration.ingestion import (
    document_id,
    hits_of,
    ingest,
    live_texts,
    new_collection,
    search,
    stores_agree,
)
from tests.integration.job_runner import claimed, drain, in_threads, job_of
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.ingest import erasure as erasing


def test_erased_documents_are_gone_from_both_stores_and_counted(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"secret": SECRET * 5, "public": PUBLIC, "third": "3"})
    chunks = len(live_texts(process, collection)["secret"])
    ids = [document_id(process, collection, name) for name in ("secret", "third")]

    erased = erase(process, document_ids=[*ids, new_id()])

    assert erased == {"documents": 2, "chunks": chunks + 1, "vectors": chunks + 1}
    assert live_texts(process, collection) == {"public": [PUBLIC]}
    stores_agree(process, collection)
    with process.ledger.read() as session:
        for id_ in ids:
            with pytest.raises(NotFound):
                documents.get(session, id_)
            assert documents.chunk_page(session, id_, limit=5, after=None) == []
        assert not session.scalar(text("SELECT count(*) FROM chunks WHERE text LIKE '%lemons%'"))
    assert {hit.source for hit in search(process, collection, "secret recipe lemons")} == {"public"}


def test_what_is_erased_twice_is_erased_once(process: Process, collection: str) -> None:
    ingest(process, collection, {"secret": SECRET})
    id_ = document_id(process, collection, "secret")

    assert erase(process, document_ids=[id_])["documents"] == 1
    assert erase(process, document_ids=[id_]) == {"documents": 0, "chunks": 0, "vectors": 0}


def test_an_erased_document_can_be_ingested_again(process: Process, collection: str) -> None:
    ingest(process, collection, {"secret": SECRET})
    erase(process, document_ids=[document_id(process, collection, "secret")])

    assert ingest(process, collection, {"secret": SECRET})[0] == {"added": 1}
    assert search(process, collection, "recipe")[0].text == SECRET
    stores_agree(process, collection)


def test_an_erased_collection_is_gone_and_its_name_is_free(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"secret": SECRET, "public": PUBLIC})

    assert erase(process, collection=collection) == {"documents": 2, "chunks": 2, "vectors": 2}

    with process.ledger.read() as session:
        with pytest.raises(NotFound):
            collections.get(session, collection)
        assert not session.scalar(text("SELECT count(*) FROM chunks"))
    with process.ledger.begin() as session:
        assert collections.put(session, collection, Spec(embedding_model=DEFAULT_EMBEDDING_MODEL))
    assert search(process, collection, "recipe") == []
    assert ingest(process, collection, {"public": PUBLIC})[0] == {"added": 1}
    assert [hit.text for hit in search(process, collection, "recipe")] == [PUBLIC]
    stores_agree(process, collection)


def test_an_unknown_collection_cannot_be_erased(process: Process) -> None:
    job_id = order_erasure(process, collection="never-there")
    drain(process)

    error = job_of(process, job_id).error
    assert error is not None
    assert error["type"] == "NotFound"


def test_from_its_first_moment_an_erasure_hides_the_text(process: Process, collection: str) -> None:
    """Whatever is still in the stores while the step is at work."""
    ingest(process, collection, {"secret": SECRET, "public": PUBLIC})
    other = new_collection(process)
    ingest(process, other, {"secret": SECRET})
    order_erasure(process, document_ids=[document_id(process, collection, "secret")])
    erasing.erase(Context(process, claimed(process, Queue.CONTROL)))
    order_erasure(process, collection=other)
    erasing.erase(Context(process, claimed(process, Queue.CONTROL)))

    assert [hit.text for hit in search(process, collection, SECRET)] == [PUBLIC]
    assert set(live_texts(process, collection)) == {"public"}
    with process.ledger.begin() as session:
        with pytest.raises(NotFound):
            collections.get(session, other)
        with pytest.raises(Conflict):
            collections.put(session, other, Spec(embedding_model=DEFAULT_EMBEDDING_MODEL))
        assert other not in {row.name for row in collections.page(session, limit=100, after=None)}


def test_a_search_that_runs_during_erasures_returns_no_erased_text(
    process: Process, settings: Settings, collection: str
) -> None:
    ingest(process, collection, {"public": PUBLIC})
    done = threading.Event()
    gone = [False]
    wrong: list[str] = []

    def work(own: Process, n: int) -> None:
        if n == 0:
            try:
                for _ in range(4):
                    ingest(own, collection, {"secret": SECRET})
                    id_ = document_id(own, collection, "secret")
                    erase(own, document_ids=[id_])
                    gone[0] = True
                    hits = hits_of(own, collection, SECRET, k=5)
                    wrong.extend(hit.text for hit in hits if hit.source == "secret")
                    gone[0] = False
            finally:
                done.set()
            return
        while not done.is_set():
            before = gone[0]
            hits = hits_of(own, collection, SECRET, k=5)
            if before and gone[0]:
                wrong.extend(hit.text for hit in hits if hit.source == "secret")
            assert "public" in {hit.source for hit in hits}

    in_threads(2, settings, work)

    assert wrong == []
    stores_agree(process, collection)
