"""Ingestion that meets failure: a document fails alone and says why, an outage is waited for."""

import numpy as np
import pytest
from sqlalchemy import text

from shared.errors import Permanent
from shared.jobs import claims
from shared.kinds import registry as kinds
from tests.integration.ingestion import (
    counts,
    ingest,
    load_all,
    new_collection,
    order,
    stores_agree,
)
from tests.integration.job_runner import (
    drain,
    handlers,
    invariants_hold,
    job_of,
    lose_workers,
    make_due,
    make_process,
    submit,
)
from workers.attempts.process import Process
from workers.attempts.runner import run, run_next
from workers.ingest.erasure import collect_garbage
from workers.retrieval.servers import store_of
from workers.retrieval.store import VectorEntry


def test_a_document_that_kills_its_worker_fails_alone(process: Process, collection: str) -> None:
    """Three documents in one load step; the worker dies whenever it looks at the second."""
    job_id = order(process, collection, {"a": "one", "poison": "two", "c": "three"})
    assert run_next(process, handlers(), "ingest")
    deaths = 0
    while True:
        make_due(process)
        with process.ledger.begin() as session:
            claim = claims.claim(session, "ingest", worker="doomed", lease_s=60)
        if claim is None:
            break
        is_broken_up = claim.attempt > 1 and len(claim.payload["ordinals"]) > 1
        if 1 in claim.payload["ordinals"] and not is_broken_up:
            deaths += 1
            lose_workers(process)
        else:
            run(process, handlers(), claim)
    drain(process)

    assert deaths == 1 + 3
    assert counts(process, job_id) == {"added": 2, "failed": 1}
    result = job_of(process, job_id).result
    assert result is not None
    (error,) = result["errors"]
    assert error["source"] == "poison"
    assert "died or hung" in error["message"]
    stores_agree(process, collection)
    invariants_hold(process, all_ended=True)


def test_a_document_that_kills_its_embedding_step_fails_alone(
    process: Process, collection: str
) -> None:
    job_id = order(process, collection, {"a": "one", "poison": "two", "c": "three"})
    load_all(process)
    with process.ledger.read() as session:
        poison = str(
            session.execute(
                text("SELECT version_id FROM ingest_items WHERE name = 'poison'")
            ).scalar_one()
        )
    while True:
        make_due(process)
        with process.ledger.begin() as session:
            claim = claims.claim(session, "embed", worker="doomed", lease_s=60)
        if claim is None:
            break
        mine = [part[0] for part in claim.payload["parts"]]
        if poison in mine and not (claim.attempt > 1 and len(mine) > 1):
            lose_workers(process)
        else:
            run(process, handlers(), claim)

    assert counts(process, job_id) == {"added": 2, "failed": 1}
    collect_garbage(process)
    stores_agree(process, collection)


def test_a_document_that_the_store_refuses_fails_alone(process: Process, collection: str) -> None:
    """Its chunks share an embedding step with those of sound documents."""
    job_id = order(process, collection, {"a": "one", "refused": "two", "c": "three"})
    load_all(process)
    with process.ledger.begin() as session:
        session.execute(
            text("""
                UPDATE chunks SET metadata = '{"nested": {"not": "allowed"}}'
                WHERE text = 'two'
            """)
        )
    drain(process)

    assert counts(process, job_id) == {"added": 2, "failed": 1}
    collect_garbage(process)
    stores_agree(process, collection)


def test_chroma_that_is_away_is_waited_for(process: Process, collection: str) -> None:
    job_id = order(process, collection, {"a": "one"})
    load_all(process)
    away = make_process(
        process.settings.model_copy(update={"chroma_url": "http://127.0.0.1:9"}), "away"
    )
    for _ in range(5):
        make_due(process)
        assert run_next(away, handlers(), "embed")
    assert job_of(process, job_id).state == "running"
    away.close()

    drain(process)

    assert counts(process, job_id) == {"added": 1}
    stores_agree(process, collection)


def test_a_model_of_another_dimension_is_refused_and_nothing_is_written(
    process: Process,
) -> None:
    collection = new_collection(process, dimension=5)
    job_id = order(process, collection, {"a": "one"})
    drain(process)

    assert counts(process, job_id) == {"failed": 1}
    result = job_of(process, job_id).result
    assert result is not None
    assert "384" in result["errors"][0]["message"]
    collect_garbage(process)
    stores_agree(process, collection)


def test_a_collection_whose_chroma_data_was_lost_is_a_clear_error(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"a": "one"})
    store_of(process).drop(collection)

    job_id = submit(process, kinds.SEARCH, {"collection": collection, "query": "one"})
    drain(process)

    error = job_of(process, job_id).error
    assert error is not None
    assert "its data was lost" in error["message"]


def test_permanent_is_what_the_store_says_of_a_refusal(process: Process, collection: str) -> None:

    ingest(process, collection, {"a": "one"})
    entry = VectorEntry(id="x", text="x", metadata={"source": "x"})

    with pytest.raises(Permanent, match="dimension"):
        store_of(process).upsert(collection, [entry], np.ones((1, 3), dtype=np.float32))
