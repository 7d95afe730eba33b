"""Ingestion from the client's side: what is added, replaced, skipped, failed, and then found."""

from typing import Any
from uuid import UUID

import pytest

from shared import files
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    counts,
    document_id,
    ingest,
    ingest_files,
    live_texts,
    order,
    order_sources,
    search,
    stores_agree,
    upload,
    vector_ids,
)
from tests.integration.job_runner import cancel, drain, handlers, job_of
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.ingest.erasure import collect_garbage


def test_new_documents_are_added_and_found(process: Process, collection: str) -> None:
    outcome, job = ingest(process, collection, {"cats": CATS, "trains": TRAINS})

    assert outcome == {"added": 2}
    assert job.result is not None
    assert job.result["errors"] == []
    assert (job.progress_done, job.progress_total, job.progress_unit) == (2, 2, "documents")
    stores_agree(process, collection)
    texts = live_texts(process, collection)
    assert job.result["chunks"] == sum(len(chunks) for chunks in texts.values())
    assert search(process, collection, "departure time of the train", k=1)[0].source == "trains"


def test_unchanged_documents_are_skipped_and_not_written_again(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    before = vector_ids(process, collection)

    outcome, job = ingest(process, collection, {"cats": CATS, "trains": TRAINS})

    assert outcome == {"skipped": 2}
    assert job.result is not None
    assert job.result["chunks"] == 0
    assert vector_ids(process, collection) == before
    stores_agree(process, collection)


def test_a_changed_document_replaces_the_old_one_in_both_stores(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    old = vector_ids(process, collection)
    id_ = document_id(process, collection, "cats")

    outcome, _ = ingest(process, collection, {"cats": "Dogs bark at night.", "trains": TRAINS})

    assert outcome == {"replaced": 1, "skipped": 1}
    assert live_texts(process, collection)["cats"] == ["Dogs bark at night."]
    assert document_id(process, collection, "cats") == id_
    assert len(vector_ids(process, collection) - old) == 1
    stores_agree(process, collection)


def test_going_back_to_an_earlier_content_is_a_change_too(
    process: Process, collection: str
) -> None:
    for text_, outcome in (("one", "added"), ("two", "replaced"), ("one", "replaced")):
        assert ingest(process, collection, {"d": text_})[0] == {outcome: 1}
        assert live_texts(process, collection) == {"d": [text_]}
        stores_agree(process, collection)


@pytest.mark.parametrize(
    "change",
    [
        {"splitter": {"type": "recursive", "chunk_size": 40, "chunk_overlap": 0}},
        {"metadata": {"team": "zoo"}},
    ],
    ids=["splitter", "metadata"],
)
def test_what_decides_the_chunks_makes_the_same_bytes_a_change(
    process: Process, collection: str, change: dict[str, Any]
) -> None:
    ingest(process, collection, {"cats": CATS})

    assert ingest(process, collection, {"cats": CATS}, **change)[0] == {"replaced": 1}
    assert ingest(process, collection, {"cats": CATS}, **change)[0] == {"skipped": 1}
    stores_agree(process, collection)


def test_on_existing_skip_leaves_what_is_there_whatever_the_content(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"cats": CATS})

    outcome, _ = ingest(
        process, collection, {"cats": "Other.", "new": "Something new."}, on_existing="skip"
    )

    assert outcome == {"skipped": 1, "added": 1}
    assert "Other." not in str(live_texts(process, collection))
    stores_agree(process, collection)


def test_a_source_that_cannot_be_read_fails_alone_and_says_why(
    process: Process, collection: str
) -> None:
    good, empty = upload(process, "good.txt", CATS.encode()), upload(process, "empty.txt", b"  \n")
    image = upload(process, "photo.png", b"\x89PNG\r\n\x1a\n\x00\x00")
    unknown = "0197a0a0-0000-7000-8000-000000000000"
    lost = upload(process, "lost.txt", b"lost")
    with process.ledger.read() as session:
        lost_path = files.get(session, UUID(lost)).path
    process.storage.delete(lost_path)
    sources = [{"type": "file", "file_id": id_} for id_ in (empty, good, image, unknown, lost)]

    job_id = order_sources(process, collection, sources)
    drain(process)

    assert counts(process, job_id) == {"added": 1, "failed": 4}
    result = job_of(process, job_id).result
    assert result is not None
    messages = {error["source"]: error["message"] for error in result["errors"]}
    assert list(messages) == ["empty.txt", "photo.png", f"file {unknown}", "lost.txt"]
    assert "empty" in messages["empty.txt"]
    assert ".png" in messages["photo.png"]
    assert "POST /v1/files" in messages[f"file {unknown}"]
    assert "no longer has" in messages["lost.txt"]
    stores_agree(process, collection)


def test_a_document_that_turns_bad_keeps_its_last_good_content(
    process: Process, collection: str
) -> None:
    ingest_files(process, collection, {"a.json": b'{"text": "good"}'})

    assert ingest_files(process, collection, {"a.json": b'{"text": '}) == {"failed": 1}

    assert live_texts(process, collection) == {"a.json": ["good"]}
    stores_agree(process, collection)


def test_the_same_source_twice_in_a_job_is_one_document(process: Process, collection: str) -> None:
    many = [("cats", CATS), ("trains", TRAINS), ("cats", CATS)]

    outcome, _ = ingest(process, collection, many)

    assert outcome == {"added": 2, "skipped": 1}
    stores_agree(process, collection)


def test_the_same_source_in_different_load_steps_is_one_document(
    process: Process, collection: str
) -> None:
    many = [("cats", CATS), *((f"d{n}", f"text {n}") for n in range(9)), ("cats", CATS)]

    outcome, _ = ingest(process, collection, many)

    assert outcome == {"added": 10, "skipped": 1}
    stores_agree(process, collection)


def test_of_two_contents_of_one_source_in_a_job_the_last_one_stays(
    process: Process, collection: str
) -> None:
    for n in range(4):  # in one load step, which writes both within a millisecond
        texts = [("d", f"first {n}"), ("d", f"second {n}"), ("other", f"other {n}")]
        ingest(process, collection, texts)

        assert live_texts(process, collection)["d"] == [f"second {n}"]
        stores_agree(process, collection)


def test_a_large_document_goes_through_several_embedding_steps(
    process: Process, collection: str
) -> None:
    words = " ".join(f"word{n} means number {n}." for n in range(120))

    outcome, job = ingest(process, collection, {"large": words, "small": "tiny"})

    assert outcome == {"added": 2}
    assert job.result is not None
    assert job.result["chunks"] > 5 * process.settings.embed_step_chunks
    chunks = live_texts(process, collection)["large"]
    assert chunks[0].startswith("word0")
    assert "word119" in chunks[-1]
    stores_agree(process, collection)


def test_a_large_document_is_invisible_until_its_last_part_is_embedded(
    process: Process, collection: str
) -> None:
    order(process, collection, {"large": " ".join(f"word{n}" for n in range(200))})
    while run_next(process, handlers(), "ingest"):
        pass
    assert run_next(process, handlers(), "embed")

    assert live_texts(process, collection) == {}
    assert search(process, collection, "word1") == []

    drain(process)
    assert list(live_texts(process, collection)) == ["large"]
    assert search(process, collection, "word1") != []


def test_a_job_for_a_collection_that_is_gone_fails_and_says_so(process: Process) -> None:
    job_id = order(process, "no-such-collection", {"a": CATS})
    drain(process)

    job = job_of(process, job_id)
    assert (job.state, job.dead) == ("failed", False)
    assert job.error is not None
    assert job.error["type"] == "NotFound"


def test_a_cancel_in_the_middle_leaves_nothing_of_what_was_not_ready(
    process: Process, collection: str
) -> None:

    ingest(process, collection, {"kept": CATS})
    job_id = order(
        process,
        collection,
        {"large": " ".join(f"word{n}" for n in range(200)), "kept": "a change", "other": TRAINS},
    )
    while run_next(process, handlers(), "ingest"):
        pass
    assert run_next(process, handlers(), "embed")
    cancel(process, job_id)
    assert drain(process) == 0
    assert job_of(process, job_id).state == "cancelled"

    assert collect_garbage(process) == 3

    assert set(live_texts(process, collection)) == {"kept"}
    assert live_texts(process, collection)["kept"][0] in CATS
    stores_agree(process, collection)
