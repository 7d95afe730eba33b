"""Erasure: gone from both stores and from every answer, counted, and room for new."""

import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import text

from shared import claims, collections, documents, steps
from shared.collections import Spec
from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import Conflict, NotFound
from shared.ids import new_id
from shared.ledger import Ledger
from shared.payloads import Kind
from shared.queue import Lane, Queue
from tests.integration.workbench import (
    claimed,
    counts,
    document_id,
    drain,
    handlers,
    in_threads,
    ingest,
    job_of,
    live_texts,
    lose_workers,
    make_process,
    new_collection,
    order,
    search,
    stores_agree,
    submit,
)
from workers.ingest import erase as erasing
from workers.ingest import steps as ingest_steps
from workers.ingest.collect import collect_forsaken
from workers.process import Process
from workers.retrieval.search import find
from workers.retrieval.store import Entry
from workers.runner import run, run_next
from workers.step import Context, Done, Handler

SECRET = "The secret recipe needs nine lemons."
PUBLIC = "The museum opens at ten."


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings)
    yield process
    process.ledger.close()


@pytest.fixture
def collection(process: Process) -> str:
    return new_collection(process)


def order_erasure(process: Process, **target: Any) -> UUID:
    if "document_ids" in target:
        target["document_ids"] = [str(id_) for id_ in target["document_ids"]]
    return submit(process, Kind.ERASE, target, lane=Lane.INTERACTIVE)


def erase(process: Process, **target: Any) -> dict[str, Any]:
    job_id = order_erasure(process, **target)
    drain(process)
    job = job_of(process, job_id)
    assert job.state == "succeeded", job.error
    assert job.result is not None
    return job.result


def test_erased_documents_are_gone_from_both_stores_and_counted(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"secret": SECRET * 5, "public": PUBLIC, "third": "3"})
    chunks = len(live_texts(process, collection)["secret"])
    ids = [document_id(process, collection, name) for name in ("secret", "third")]

    found = erase(process, document_ids=[*ids, new_id()])

    assert found == {"documents": 2, "chunks": chunks + 1, "vectors": chunks + 1}
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
        assert other not in {each.name for each in collections.page(session, limit=100, after=None)}


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
                    found = find(own, collection, SECRET, k=5, where=None)
                    wrong.extend(hit.text for hit in found if hit.source == "secret")
                    gone[0] = False
            finally:
                done.set()
            return
        while not done.is_set():
            before = gone[0]
            hits = find(own, collection, SECRET, k=5, where=None)
            if before and gone[0]:
                wrong.extend(hit.text for hit in hits if hit.source == "secret")
            assert "public" in {hit.source for hit in hits}

    in_threads(2, settings, work)

    assert wrong == []
    stores_agree(process, collection)


def test_an_erasure_whose_worker_dies_is_finished_by_the_next_attempt(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"secret": SECRET, "public": PUBLIC})
    job_id = order_erasure(process, document_ids=[document_id(process, collection, "secret")])
    erasing.erase(Context(process, claimed(process, Queue.CONTROL)))

    lose_workers(process)
    drain(process)

    assert job_of(process, job_id).state == "succeeded"
    assert set(live_texts(process, collection)) == {"public"}
    stores_agree(process, collection)


def test_text_that_is_being_embedded_does_not_survive_its_erasure(
    process: Process, collection: str
) -> None:
    """The embedding step writes its vectors after the erasure has looked for them."""
    ingest(process, collection, {"secret": "old", "public": PUBLIC})
    job_id = order(process, collection, {"secret": SECRET})
    while run_next(process, handlers(), "ingest"):
        pass

    def embed(context: Context) -> Done:
        order_erasure(process, document_ids=[document_id(process, collection, "secret")])
        claim = claimed(process, Queue.CONTROL)
        erased = erasing.erase(Context(process, claim))
        done = ingest_steps.embed(context)
        with process.ledger.begin() as session:
            assert steps.succeed(session, claim, result=erased.result, record=erased.record)
        return done

    table = {"ingest.embed": Handler(run=embed, finish=ingest_steps.EMBED.finish)}
    run(process, table, claimed(process, Queue.EMBED))

    assert counts(process, job_id) == {"failed": 1}
    result = job_of(process, job_id).result
    assert result is not None
    assert "erased while it was ingested" in result["errors"][0]["message"]
    stores_agree(process, collection)


@pytest.mark.parametrize("rows_go", ["before", "after", "and its worker died"])
def test_vectors_written_in_the_middle_of_an_erasure_are_deleted_with_it(
    process: Process, collection: str, rows_go: str
) -> None:
    """The embedding step has read its text, then all of the erasure but its last part happens."""
    ingest(process, collection, {"public": PUBLIC})
    order(process, collection, {"secret": SECRET})
    while run_next(process, handlers(), "ingest"):
        pass
    with process.ledger.read() as session:
        id_ = session.execute(text("SELECT id FROM documents WHERE source = 'secret'")).scalar_one()
    embedding = claimed(process, Queue.EMBED)
    order_erasure(process, document_ids=[id_])
    claim = claimed(process, Queue.CONTROL)

    done = ingest_steps.embed(Context(process, embedding))  # it was quicker than the erasure
    erased = erasing.erase(Context(process, claim))
    _write_vectors_again(process, collection, embedding)

    def finish_erasure() -> None:
        with process.ledger.begin() as session:
            assert steps.succeed(session, claim, result=erased.result, record=erased.record)
        if erased.after is not None:
            erased.after()

    def finish_embedding() -> None:
        with process.ledger.begin() as session:
            assert steps.succeed(
                session, embedding, record=done.record, finish=ingest_steps.EMBED.finish
            )
        assert done.after is not None
        done.after()

    if rows_go == "after":
        finish_embedding()
    finish_erasure()
    if rows_go == "before":
        finish_embedding()

    stores_agree(process, collection)


def test_a_document_that_is_being_erased_is_ingested_again_after_that(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"secret": "old"})
    order_erasure(process, document_ids=[document_id(process, collection, "secret")])
    claim = claimed(process, Queue.CONTROL)
    done = erasing.erase(Context(process, claim))
    job_id = order(process, collection, {"secret": SECRET, "other": "text"})
    while run_next(process, handlers(), "ingest"):
        pass
    assert job_of(process, job_id).state == "running"

    with process.ledger.begin() as session:
        steps.succeed(session, claim, result=done.result, record=done.record)
    drain(process)

    assert counts(process, job_id) == {"added": 2}
    assert live_texts(process, collection) == {"secret": [SECRET], "other": ["text"]}
    stores_agree(process, collection)


def test_an_erasure_that_was_given_up_is_ended_by_the_collector(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"secret": SECRET, "public": PUBLIC})
    order_erasure(process, document_ids=[document_id(process, collection, "secret")])
    erasing.erase(Context(process, claimed(process, Queue.CONTROL)))
    assert collect_forsaken(process) == 0
    with process.ledger.begin() as session:
        session.execute(
            text("""
                UPDATE documents SET erasing_at = now() - interval '2 h'
                WHERE erasing_at IS NOT NULL
            """)
        )

    assert collect_forsaken(process) == 1

    stores_agree(process, collection)
    assert set(live_texts(process, collection)) == {"public"}


def test_a_collection_erased_while_it_is_filled_leaves_nothing(
    process: Process, collection: str
) -> None:
    order(process, collection, {f"d{n}": f"{SECRET} {n}" for n in range(8)})
    assert run_next(process, handlers(), "ingest")
    assert run_next(process, handlers(), "ingest")
    assert run_next(process, handlers(), "embed")
    job_id = order_erasure(process, collection=collection)
    assert run_next(process, handlers(), "control")
    drain(process)

    assert job_of(process, job_id).state == "succeeded"
    assert process.store.drop(collection) == 0
    with process.ledger.read() as session:
        for table in ("collections", "documents", "versions", "chunks"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0


def _write_vectors_again(process: Process, collection: str, claim: claims.Claim) -> None:

    ids = [
        documents.chunk_id(UUID(version), n)
        for version, first, end in claim.payload["parts"]
        for n in range(first, end)
    ]
    entries = [Entry(id=id_, text=SECRET, metadata={"source": "secret"}) for id_ in ids]
    process.store.upsert(collection, entries, np.ones((len(ids), 384), dtype=np.float32))
