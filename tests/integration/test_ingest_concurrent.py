"""Several jobs on the same documents at once: whose content stays, and what is left."""

import threading
from uuid import UUID

from sqlalchemy import text

from shared.config import Settings
from shared.tables import new_id
from shared.vocabulary import OPEN, Queue
from tests.integration.ingestion import (
    counts,
    ingest,
    live_texts,
    load_all,
    order,
    pages,
    stores_agree,
)
from tests.integration.job_runner import (
    PATIENCE_S,
    cancel,
    claimed,
    drain,
    handlers,
    in_threads,
    invariants_hold,
    job_of,
)
from workers.attempts.process import Process
from workers.attempts.runner import run, run_next
from workers.ingest.erasure import collect_garbage


def embed_next(process: Process) -> None:
    assert run_next(process, handlers(), Queue.EMBED.value)


def test_two_jobs_with_the_same_content_make_one_document(
    process: Process, collection: str
) -> None:
    first = order(process, collection, {"d": pages("apple", 20)})
    second = order(process, collection, {"d": pages("apple", 20)})
    load_all(process)
    drain(process)

    assert [counts(process, first), counts(process, second)] == [{"added": 1}, {"skipped": 1}]
    results = [job_of(process, id_).result for id_ in (first, second)]
    assert [result["chunks"] > 0 for result in results if result] == [True, False]
    stores_agree(process, collection)


def test_two_jobs_with_different_content_leave_the_later_one(
    process: Process, collection: str
) -> None:
    first = order(process, collection, {"d": pages("apple", 20)})
    second = order(process, collection, {"d": pages("banana", 20)})
    load_all(process)
    drain(process)

    assert [counts(process, first), counts(process, second)] == [{"added": 1}, {"replaced": 1}]
    assert "banana" in live_texts(process, collection)["d"][0]
    stores_agree(process, collection)


def test_an_older_content_that_is_ready_last_does_not_replace_the_newer_one(
    process: Process, collection: str
) -> None:
    slow = order(process, collection, {"d": "the old text"})
    load_all(process)
    held = claimed(process, Queue.EMBED)
    fast = order(process, collection, {"d": "the new text"})
    drain(process)
    run(process, handlers(), held)

    assert [counts(process, slow), counts(process, fast)] == [{"skipped": 1}, {"added": 1}]
    assert live_texts(process, collection) == {"d": ["the new text"]}
    collect_garbage(process)
    stores_agree(process, collection)


def test_the_last_job_wins_when_an_earlier_content_is_submitted_again(
    process: Process, collection: str
) -> None:
    """A is on its way, B overtakes it, then A is sent again: A it has to be."""
    first = order(process, collection, {"d": "content A"})
    load_all(process)
    held = claimed(process, Queue.EMBED)
    second = order(process, collection, {"d": "content B"})
    drain(process)
    third = order(process, collection, {"d": "content A"})
    drain(process)
    run(process, handlers(), held)
    drain(process)

    assert live_texts(process, collection) == {"d": ["content A"]}
    outcomes = [counts(process, id_) for id_ in (first, second, third)]
    assert outcomes == [{"skipped": 1}, {"added": 1}, {"replaced": 1}]
    collect_garbage(process)
    stores_agree(process, collection)


def test_a_content_that_others_made_live_and_replaced_is_skipped_not_erased(
    process: Process, collection: str
) -> None:
    """The third job shares the first one's version, which is gone before its own step runs."""
    first = order(process, collection, {"d": "content A"})
    third = order(process, collection, {"d": "content A"})
    load_all(process)
    embed_next(process)
    held = claimed(process, Queue.EMBED)
    second = order(process, collection, {"d": "content B"})
    drain(process)
    collect_garbage(process)
    run(process, handlers(), held)

    outcomes = [counts(process, id_) for id_ in (first, second, third)]
    assert outcomes == [{"added": 1}, {"replaced": 1}, {"skipped": 1}]
    assert live_texts(process, collection) == {"d": ["content B"]}
    collect_garbage(process)
    stores_agree(process, collection)


def test_a_version_made_where_the_clock_is_ahead_does_not_block_later_ones(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"d": "of the fast clock"})
    ahead = UUID(int=new_id().int + (3_600_000 << 80))
    with process.ledger.begin() as session:
        session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        session.execute(
            text("""
                INSERT INTO versions
                SELECT :ahead, document_id, 'live', sha256, content_hash, size_bytes, metadata,
                    chunk_count, embedded, created_at FROM versions
            """),
            {"ahead": ahead},
        )
        session.execute(text("UPDATE chunks SET version_id = :ahead"), {"ahead": ahead})
        session.execute(text("UPDATE documents SET live_version_id = :ahead"), {"ahead": ahead})
        session.execute(text("DELETE FROM versions WHERE id <> :ahead"), {"ahead": ahead})

    outcome, _ = ingest(process, collection, {"d": "of the right clock"})

    assert outcome == {"replaced": 1}
    assert live_texts(process, collection) == {"d": ["of the right clock"]}


def test_a_job_that_joins_a_version_keeps_it_when_the_first_is_cancelled(
    process: Process, collection: str
) -> None:

    first = order(process, collection, {"d": pages("apple", 20)})
    load_all(process)
    second = order(process, collection, {"d": pages("apple", 20)})
    load_all(process)
    cancel(process, first)
    collect_garbage(process)
    drain(process)

    assert job_of(process, first).state == "cancelled"
    assert counts(process, second) == {"added": 1}
    stores_agree(process, collection)


def test_many_workers_on_many_jobs_over_few_documents_end_exact(
    process: Process, settings: Settings, collection: str
) -> None:
    jobs = [
        order(
            process,
            collection,
            {f"d{n}": f"text {(n + round_) % 3} of it" for n in range(6)},
            fields={"fair_key": "abc"[round_ % 3]},
        )
        for round_ in range(8)
    ]
    ready = threading.Barrier(4)

    def work(own: Process, n: int) -> None:
        ready.wait(PATIENCE_S)
        while any(job_of(own, id_).state in OPEN for id_ in jobs):
            drain(own)
            if n == 0:
                collect_garbage(own)

    in_threads(4, settings, work)

    total: dict[str, int] = {}
    for id_ in jobs:
        for name, count in counts(process, id_).items():
            total[name] = total.get(name, 0) + count
    assert total["added"] == 6
    assert "failed" not in total
    assert sum(total.values()) == 48
    collect_garbage(process)
    stores_agree(process, collection)
    assert len(live_texts(process, collection)) == 6
    invariants_hold(process, all_ended=True)
