"""Ingestion beside readers, the collector and erasures: nobody sees a half, nobody fails."""

import threading

import pytest

from shared.config import Settings
from shared.documents import collections, erasure, versions
from shared.documents.versions import Content
from shared.errors import NotFound
from shared.vocabulary import Queue
from tests.integration.ingestion import (
    counts,
    hits_of,
    ingest,
    live_texts,
    load_all,
    order,
    pages,
    search,
    stores_agree,
)
from tests.integration.job_runner import PATIENCE_S, cancel, claimed, drain, handlers, in_threads
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.attempts.runner import run, run_next
from workers.ingest.erasure import collect_garbage
from workers.retrieval.servers import store_of


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
            hits = hits_of(own, collection, "which page speaks of matters?", k=8)
            seen.append(words([hit.text for hit in hits]))

    in_threads(2, settings, work)

    assert len(seen) > 6
    assert all(len(look) == 1 for look in seen), [look for look in seen if len(look) != 1]
    assert {word for look in seen for word in look} == {"apple", "banana"}
    stores_agree(process, collection)


def test_ingesting_while_abandoned_documents_are_collected_fails_nothing(
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
                collect_garbage(own)
            barrier.wait(PATIENCE_S)

    in_threads(2, settings, work)

    for job_id in kept:
        assert set(counts(process, job_id)) <= {"added", "replaced"}  # type: ignore[arg-type]
    collect_garbage(process)
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
        garbage = erasure.retire_abandoned(session, limit=10)
    content = Content(
        source="d", sha256="0", content_hash="1", size_bytes=1, metadata={},
        chunks=[(0, "new", {})],
    )  # fmt: skip
    with process.ledger.begin() as session:
        owner = collections.get(session, collection)
        documents = versions.lock_documents(session, owner.id, ["d"])
        remover = threading.Thread(target=_remove, args=(process, garbage))
        remover.start()
        remover.join(0.3)
        made = versions.begin(session, documents["d"], content, skip_existing=False)
    remover.join(PATIENCE_S)

    with process.ledger.read() as session:
        assert made is not None
        assert erasure.with_readers(session, [made]) == {made}


def _remove(process: Process, garbage: list[object]) -> None:

    with process.ledger.begin() as session:
        erasure.remove(session, [version.version_id for version in garbage])  # type: ignore[attr-defined]


def test_an_erased_collection_is_not_made_again_by_a_job_that_was_just_starting(
    process: Process, collection: str
) -> None:

    order(process, collection, {"d": "text"})
    with process.ledger.begin() as session:
        erasure.hide_collection(session, collection)
    drain(process)

    with pytest.raises(NotFound), process.ledger.begin() as session:
        collections.get(session, collection)
    assert store_of(process).drop(collection) == 0


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
    seen = []

    embed_alone = handlers()["ingest.embed"].run
    assert embed_alone is not None

    def embed(context: Context) -> Done:
        done = embed_alone(context)
        seen.append([hit.text for hit in search(process, collection, "text")])
        return done

    run(process, {"ingest.embed": Handler(run=embed)}, claimed(process, Queue.EMBED))

    assert seen == [["the old text"]]
