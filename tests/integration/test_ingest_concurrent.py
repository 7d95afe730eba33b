"""Several jobs on the same documents at once, and readers who look on meanwhile."""

import threading
from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import text

from shared import collections, erasure, remains, versions
from shared.config import Settings
from shared.errors import NotFound
from shared.ids import new_id
from shared.ledger import Ledger
from shared.queue import Queue
from shared.states import OPEN
from shared.versions import Content
from tests.integration.workbench import (
    cancel,
    claimed,
    counts,
    drain,
    handlers,
    in_threads,
    ingest,
    invariants_hold,
    job_of,
    live_texts,
    make_process,
    new_collection,
    order,
    search,
    stores_agree,
)
from workers.ingest.collect import collect_forsaken
from workers.process import Process
from workers.retrieval.search import find
from workers.runner import run, run_next
from workers.step import Context, Done, Handler

PATIENCE_S = 60


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


def embed_next(process: Process) -> None:
    assert run_next(process, handlers(), Queue.EMBED.value)


def pages(word: str, count: int) -> str:
    return "\n\n".join(f"{word} page {n} speaks of {word} matters only." for n in range(count))


def test_readers_see_the_old_or_the_new_text_never_a_mix_and_never_nothing(
    process: Process, settings: Settings, collection: str
) -> None:
    ingest(process, collection, {"d": pages("apple", 8)})
    done = threading.Event()
    seen: list[set[str]] = []

    def words(texts: list[str]) -> set[str]:
        return {text.split()[0] for text in texts}

    def work(own: Process, n: int) -> None:
        if n == 0:
            try:
                for round_ in range(4):
                    order(own, collection, {"d": pages(["banana", "apple"][round_ % 2], 8)})
                    drain(own)
            finally:
                done.set()
            return
        while not done.is_set():
            seen.append(words(live_texts(own, collection)["d"]))
            hits = find(own, collection, "which page speaks of matters?", k=8, where=None)
            seen.append(words([hit.text for hit in hits]))

    in_threads(2, settings, work)

    assert len(seen) > 6
    assert all(len(each) == 1 for each in seen), [each for each in seen if len(each) != 1]
    assert {word for each in seen for word in each} == {"apple", "banana"}
    stores_agree(process, collection)


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
    collect_forsaken(process)
    stores_agree(process, collection)


def test_the_last_wish_wins_when_an_earlier_content_is_asked_for_again(
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
    collect_forsaken(process)
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
    collect_forsaken(process)
    run(process, handlers(), held)

    outcomes = [counts(process, id_) for id_ in (first, second, third)]
    assert outcomes == [{"added": 1}, {"replaced": 1}, {"skipped": 1}]
    assert live_texts(process, collection) == {"d": ["content B"]}
    collect_forsaken(process)
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
    collect_forsaken(process)
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
                collect_forsaken(own)

    in_threads(4, settings, work)

    total: dict[str, int] = {}
    for id_ in jobs:
        for name, count in counts(process, id_).items():
            total[name] = total.get(name, 0) + count
    assert total["added"] == 6
    assert "failed" not in total
    assert sum(total.values()) == 48
    collect_forsaken(process)
    stores_agree(process, collection)
    assert len(live_texts(process, collection)) == 6
    invariants_hold(process, all_ended=True)


def test_ingesting_while_forsaken_documents_are_collected_fails_nothing(
    process: Process, settings: Settings, collection: str
) -> None:
    """Documents without a live version vanish under load steps that just want to write them."""

    rounds = 6
    barrier = threading.Barrier(2)
    kept: list[object] = []

    def work(own: Process, n: int) -> None:
        for round_ in range(rounds):
            if n == 0:
                gone = order(own, collection, {"d": f"never ready {round_}"})
                load_all(own)
                cancel(own, gone)
                drain(own)
                kept.append(order(own, collection, {"d": f"ready {round_}"}))
                assert run_next(own, handlers(), "ingest")  # the plan
            barrier.wait(PATIENCE_S)
            if n == 0:
                drain(own)
            else:
                collect_forsaken(own)
            barrier.wait(PATIENCE_S)

    in_threads(2, settings, work)

    for job_id in kept:
        assert set(counts(process, job_id)) <= {"added", "replaced"}  # type: ignore[arg-type]
    collect_forsaken(process)
    stores_agree(process, collection)
    assert live_texts(process, collection) == {"d": [f"ready {rounds - 1}"]}


def test_the_collector_waits_for_who_just_locks_a_document(
    process: Process, collection: str
) -> None:
    """A load step is adding a version to a document that the collector takes for empty."""

    job_id = order(process, collection, {"d": "never ready"})
    load_all(process)
    cancel(process, job_id)
    with process.ledger.begin() as session:
        found = remains.forsaken(session, limit=10)
    content = Content(
        source="d", sha256="0", content_hash="1", size_bytes=1, metadata={},
        chunks=[(0, "new", {})],
    )  # fmt: skip
    with process.ledger.begin() as session:
        owner = collections.get(session, collection)
        documents = versions.lock_documents(session, owner.id, ["d"])
        remover = threading.Thread(target=_remove, args=(process, found))
        remover.start()
        remover.join(0.3)
        made = versions.begin(session, documents["d"], content, skip_existing=False)
    remover.join(PATIENCE_S)

    with process.ledger.read() as session:
        assert made is not None
        assert versions.wanted(session, [made]) == {made}


def _remove(process: Process, found: list[object]) -> None:

    with process.ledger.begin() as session:
        remains.remove(session, [each.version_id for each in found])  # type: ignore[attr-defined]


def test_an_erased_collection_is_not_made_again_by_a_job_that_was_just_starting(
    process: Process, collection: str
) -> None:

    order(process, collection, {"d": "text"})
    with process.ledger.begin() as session:
        erasure.hide_collection(session, collection)
    drain(process)

    with pytest.raises(NotFound), process.ledger.begin() as session:
        collections.get(session, collection)
    assert process.store.drop(collection) == 0


def test_an_erasure_waits_for_a_plan_that_is_just_making_the_chroma_collection(
    process: Process, collection: str
) -> None:
    """Else it would drop the collection first, and leave behind the one that is made then."""
    with process.ledger.begin() as session:
        collections.hold(session, collections.get(session, collection).id)
        eraser = threading.Thread(target=_hide, args=(process, collection))
        eraser.start()
        eraser.join(0.3)
        assert eraser.is_alive()
    eraser.join(PATIENCE_S)

    with pytest.raises(NotFound), process.ledger.begin() as session:
        collections.get(session, collection)


def _hide(process: Process, collection: str) -> None:
    with process.ledger.begin() as session:
        erasure.hide_collection(session, collection)


def test_search_goes_on_while_a_step_embeds(process: Process, collection: str) -> None:
    """No transaction and no lock is held while the model runs."""
    ingest(process, collection, {"d": "the old text"})
    order(process, collection, {"d": "the new text"})
    load_all(process)
    found = []

    def embed(context: Context) -> Done:
        done = handlers()["ingest.embed"].run(context)
        found.append([hit.text for hit in search(process, collection, "text")])
        return done

    run(process, {"ingest.embed": Handler(run=embed)}, claimed(process, Queue.EMBED))

    assert found == [["the old text"]]
