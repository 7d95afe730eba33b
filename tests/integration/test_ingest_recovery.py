"""Ingestion when workers die or hang: both stores end exact, whatever was half done."""

from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select, text

from shared.errors import Unavailable
from shared.jobs import steps
from shared.jobs.claims import Claim
from shared.tables import Version
from shared.vocabulary import Queue
from tests.integration.ingestion import (
    counts,
    document_id,
    ingest,
    live_chunk_ids,
    live_texts,
    load_all,
    order,
    search,
    stores_agree,
    vector_ids,
)
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    handlers,
    invariants_hold,
    job_of,
    lose_workers,
)
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.attempts.runner import run, run_next
from workers.ingest import steps as ingest_steps
from workers.ingest.erasure import collect_garbage
from workers.retrieval.servers import store_of
from workers.retrieval.store import VectorEntry

LARGE = " ".join(f"word{n}" for n in range(100))


def half_embedded(process: Process) -> tuple[Claim, Context, Done]:
    """An embedding step whose vectors are written and not yet recorded, as at a kill -9."""
    claim = claimed(process, Queue.EMBED)
    context = Context(process, claim)
    return claim, context, ingest_steps.embed(context)


def outcome_of(process: Process, claim: Claim, done: Done) -> bool:
    """What the worker does next, if it lives."""
    with process.ledger.begin() as session:
        return steps.succeed(
            session,
            claim,
            children=done.children,
            record=done.record,
            finish=ingest_steps.EMBED.finish,
        )


def test_a_kill_between_vectors_and_record_is_made_good_by_the_next_attempt(
    process: Process, collection: str
) -> None:
    job_id = order(process, collection, {"large": LARGE, "a": "one", "b": "two"})
    load_all(process)
    half_embedded(process)
    assert len(vector_ids(process, collection)) > 0
    assert live_chunk_ids(process, collection) == set()

    lose_workers(process)
    drain(process)

    assert counts(process, job_id) == {"added": 3}
    stores_agree(process, collection)
    invariants_hold(process, all_ended=True)


def test_a_kill_between_the_load_steps_writes_and_its_record_duplicates_nothing(
    process: Process, collection: str
) -> None:
    job_id = order(process, collection, {"a": "one", "b": "two", "c": "three"})
    assert run_next(process, handlers(), "ingest")
    claim = claimed(process, Queue.INGEST)
    ingest_steps.load(Context(process, claim))

    lose_workers(process)
    drain(process)

    assert counts(process, job_id) == {"added": 3}
    with process.ledger.read() as session:
        assert len(session.scalars(select(Version.id)).all()) == 3
    stores_agree(process, collection)


def test_a_zombie_that_loads_after_its_lease_writes_nothing(
    process: Process, collection: str
) -> None:
    job_id = order(process, collection, {"a": "one", "b": "two"})
    assert run_next(process, handlers(), "ingest")
    claim = claimed(process, Queue.INGEST)
    lose_workers(process)
    cancel(process, job_id)

    run(process, handlers(), claim)

    with process.ledger.read() as session:
        assert session.scalar(text("SELECT count(*) FROM documents")) == 0
        assert session.scalar(text("SELECT count(*) FROM versions")) == 0
    assert job_of(process, job_id).state == "cancelled"


def test_a_zombie_that_records_after_its_successor_changes_nothing(
    process: Process, collection: str
) -> None:
    job_id = order(process, collection, {"a": "one"})
    load_all(process)
    claim, _, done = half_embedded(process)
    lose_workers(process)
    drain(process)
    before = live_texts(process, collection)

    assert outcome_of(process, claim, done) is False

    assert counts(process, job_id) == {"added": 1}
    assert live_texts(process, collection) == before
    stores_agree(process, collection)


def test_the_vectors_of_a_zombie_whose_version_was_collected_are_deleted(
    process: Process, collection: str
) -> None:
    """The lease is lost, the job is cancelled and tidied up, and only then it writes."""
    ingest(process, collection, {"kept": "kept"})
    job_id = order(process, collection, {"large": LARGE})
    load_all(process)
    while_away = []

    def slow_embed(context: Context) -> Done:
        done = ingest_steps.embed(context)
        vectors = vector_ids(process, collection)
        lose_workers(process)
        cancel(process, job_id)
        while_away.append(collect_garbage(process))
        # Its vectors were deleted with the version; they come back from the zombie's last batch.
        _write_again(process, collection, context)
        assert len(vector_ids(process, collection)) == len(vectors)
        return done

    run(process, {"ingest.embed": Handler(run=slow_embed)}, claimed(process, Queue.EMBED))

    assert while_away == [1]
    assert job_of(process, job_id).state == "cancelled"
    stores_agree(process, collection)


@pytest.mark.parametrize("error", [Unavailable("no answer"), RuntimeError("a bug")])
def test_the_vectors_of_a_zombie_that_fails_are_deleted_too(
    process: Process, collection: str, error: Exception
) -> None:
    ingest(process, collection, {"kept": "kept"})
    job_id = order(process, collection, {"large": LARGE})
    load_all(process)

    def embed(context: Context) -> Done:
        ingest_steps.embed(context)
        lose_workers(process)
        cancel(process, job_id)
        collect_garbage(process)
        _write_again(process, collection, context)
        raise error

    run(process, {"ingest.embed": Handler(run=embed)}, claimed(process, Queue.EMBED))

    stores_agree(process, collection)


def test_vectors_that_a_step_writes_while_its_version_is_collected_are_deleted(
    process: Process, collection: str
) -> None:
    """The collector has looked for them before, and removes the rows after the step's own look."""
    ingest(process, collection, {"d": "old"})
    order(process, collection, {"d": "new"})
    load_all(process)
    claim, context, done = half_embedded(process)
    with process.ledger.begin() as session:
        session.execute(text("UPDATE versions SET state = 'retired' WHERE state = 'pending'"))

    assert outcome_of(process, claim, done)

    assert vector_ids(process, collection) == live_chunk_ids(process, collection)
    assert context.claim == claim


def test_readers_never_see_text_whose_version_is_not_live(
    process: Process, collection: str
) -> None:
    """Vectors that Chroma has too many, as after a crash, are never hits."""
    ingest(process, collection, {"d": "the old text"})
    old = document_id(process, collection, "d")
    order(process, collection, {"d": "the new text"})
    load_all(process)
    half_embedded(process)

    hits = search(process, collection, "the new text")

    assert [(hit.text, hit.document_id) for hit in hits] == [("the old text", str(old))]


def _write_again(process: Process, collection: str, context: Context) -> None:
    """The vectors of the step's parts, as its last batch would write them."""

    parts = context.claim.payload["parts"]
    ids = [
        f"{UUID(version).hex}-{n:06d}" for version, first, end in parts for n in range(first, end)
    ]
    entries = [VectorEntry(id=id_, text="zombie", metadata={"source": "large"}) for id_ in ids]
    store_of(process).upsert(collection, entries, np.ones((len(ids), 384), dtype=np.float32))
