"""Erasures that meet ingestion or a dying worker midway: nothing of the text survives."""

from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import text

from shared.documents import documents
from shared.jobs import claims, jobs, steps
from shared.vocabulary import Queue
from tests.integration.erasures import PUBLIC, SECRET, erase, order_erasure
from tests.integration.ingestion import (
    counts,
    document_id,
    ingest,
    live_texts,
    new_collection,
    order,
    stores_agree,
)
from tests.integration.job_runner import claimed, drain, handlers, job_of, lose_workers
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.attempts.runner import run, run_next
from workers.ingest import erasure as erasing
from workers.ingest import steps as ingest_steps
from workers.ingest.erasure import collect_garbage
from workers.retrieval.servers import store_of
from workers.retrieval.store import MissingCollection, VectorEntry


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

    def finish_embedding() -> None:
        with process.ledger.begin() as session:
            assert steps.succeed(
                session, embedding, record=done.record, finish=ingest_steps.EMBED.finish
            )

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


def test_an_abandoned_erasure_is_ended_by_the_collector(process: Process, collection: str) -> None:
    ingest(process, collection, {"secret": SECRET, "public": PUBLIC})
    order_erasure(process, document_ids=[document_id(process, collection, "secret")])
    erasing.erase(Context(process, claimed(process, Queue.CONTROL)))
    assert collect_garbage(process) == 0
    with process.ledger.begin() as session:
        session.execute(
            text("""
                UPDATE documents SET erasing_at = now() - interval '2 h'
                WHERE erasing_at IS NOT NULL
            """)
        )

    assert collect_garbage(process) == 1

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
    assert store_of(process).drop(collection) == 0
    with process.ledger.read() as session:
        for table in ("collections", "documents", "versions", "chunks"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0


def _write_vectors_again(process: Process, collection: str, claim: claims.Claim) -> None:

    ids = [
        documents.chunk_id(UUID(version), n)
        for version, first, end in claim.payload["parts"]
        for n in range(first, end)
    ]
    entries = [VectorEntry(id=id_, text=SECRET, metadata={"source": "secret"}) for id_ in ids]
    store_of(process).upsert(collection, entries, np.ones((len(ids), 384), dtype=np.float32))


def test_no_transaction_waits_for_chroma_while_a_collection_is_made(process: Process) -> None:
    """While Chroma makes it, the ledger's row is free: an erasure is not kept waiting."""
    collection = new_collection(process)
    job_id = order(process, collection, {"a": "one"})
    seen: list[str] = []
    real = store_of(process).make

    def make(name: str, distance: str) -> None:
        with process.ledger.begin() as session:
            row = text("SELECT name FROM collections WHERE name = :name FOR UPDATE NOWAIT")
            seen.append(session.execute(row, {"name": name}).scalar_one())
        real(name, distance)

    store_of(process).make = make  # type: ignore[method-assign]
    assert run_next(process, handlers(), "ingest")

    assert seen == [collection]
    with process.ledger.read() as session:
        assert jobs.state_of(session, job_id) == "running"


def test_a_collection_that_is_erased_while_chroma_makes_it_leaves_nothing_there(
    process: Process,
) -> None:
    collection = new_collection(process)
    job_id = order(process, collection, {"a": "one"}, fields={"max_attempts": 1})
    real = store_of(process).make

    def make(name: str, distance: str) -> None:
        erase(process, collection=collection)  # to its end, and then:
        real(name, distance)

    planned = claimed(process, Queue.INGEST)
    store_of(process).make = make  # type: ignore[method-assign]
    run(process, handlers(), planned)

    assert store_of(process).id_page(collection, limit=1, offset=0) == []
    with pytest.raises(MissingCollection):
        store_of(process).upsert(collection, [], np.zeros((0, 384), dtype=np.float32))
    job = job_of(process, job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["type"] == "NotFound"
