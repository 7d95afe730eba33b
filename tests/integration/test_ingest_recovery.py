"""Ingestion when workers die or hang: both stores end exact, whatever was half done."""

from collections.abc import Iterator
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select, text

from shared import claims, steps
from shared.claims import Claim
from shared.config import Settings
from shared.errors import Permanent, Unavailable
from shared.ledger import Ledger
from shared.models import Version
from shared.payloads import Kind
from shared.queue import Queue
from tests.integration.workbench import (
    cancel,
    claimed,
    counts,
    document_id,
    drain,
    handlers,
    ingest,
    invariants_hold,
    job_of,
    live_chunk_ids,
    live_texts,
    lose_workers,
    make_due,
    make_process,
    new_collection,
    order,
    search,
    stores_agree,
    submit,
)
from workers.ingest import steps as ingest_steps
from workers.ingest.collect import collect_forsaken
from workers.process import Process
from workers.retrieval.store import Entry
from workers.runner import run, run_next
from workers.step import Context, Done, Handler

LARGE = " ".join(f"word{n}" for n in range(100))


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings)
    yield process
    process.ledger.close()


@pytest.fixture
def collection(process: Process) -> str:
    return new_collection(process)


def load_all(process: Process) -> None:
    while run_next(process, handlers(), Queue.INGEST.value):
        pass


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
    assert len(process.store.ids(collection)) > 0
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
        vectors = process.store.ids(collection)
        lose_workers(process)
        cancel(process, job_id)
        while_away.append(collect_forsaken(process))
        # Its vectors were deleted with the version; they come back from the zombie's last batch.
        _write_again(process, collection, context)
        assert len(process.store.ids(collection)) == len(vectors)
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
        collect_forsaken(process)
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
    assert done.after is not None
    done.after()

    assert process.store.ids(collection) == live_chunk_ids(process, collection)
    assert context.claim == claim


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
    collect_forsaken(process)
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
    collect_forsaken(process)
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
    away.ledger.close()

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
    collect_forsaken(process)
    stores_agree(process, collection)


def test_a_collection_whose_chroma_data_was_lost_is_a_clear_error(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"a": "one"})
    process.store.drop(collection)

    job_id = submit(process, Kind.SEARCH, {"collection": collection, "query": "one"})
    drain(process)

    error = job_of(process, job_id).error
    assert error is not None
    assert "its data was lost" in error["message"]


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
    entries = [Entry(id=id_, text="zombie", metadata={"source": "large"}) for id_ in ids]
    process.store.upsert(collection, entries, np.ones((len(ids), 384), dtype=np.float32))


def test_permanent_is_what_the_store_says_of_a_refusal(process: Process, collection: str) -> None:

    ingest(process, collection, {"a": "one"})
    entry = Entry(id="x", text="x", metadata={"source": "x"})

    with pytest.raises(Permanent, match="dimension"):
        process.store.upsert(collection, [entry], np.ones((1, 3), dtype=np.float32))
