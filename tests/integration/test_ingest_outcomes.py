"""Ingestion from the client's side: what is added, replaced, skipped, failed, and then found."""

import io
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from shared import files
from shared.config import Settings
from shared.ledger import Ledger
from tests.integration.workbench import (
    cancel,
    counts,
    document_id,
    drain,
    handlers,
    ingest,
    job_of,
    live_texts,
    make_process,
    new_collection,
    order,
    order_sources,
    search,
    stores_agree,
)
from workers.ingest.collect import collect_forsaken
from workers.process import Process
from workers.runner import run_next

CATS = "Cats sleep for most of the day. A cat sleeps fifteen hours on average."
TRAINS = "The train to Busan leaves at nine. Trains run every thirty minutes."


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings)
    yield process
    process.ledger.close()


@pytest.fixture
def collection(process: Process) -> str:
    return new_collection(process)


def upload(process: Process, name: str, data: bytes, content_type: str | None = None) -> str:
    stored = process.storage.store(io.BytesIO(data), name=name, limit_bytes=10**6)
    with process.ledger.begin() as session:
        return str(files.record(session, stored, name=name, content_type=content_type).id)


def ingest_files(
    process: Process, collection: str, uploads: dict[str, bytes], **wanted: Any
) -> dict[str, int]:
    sources = [
        {"type": "file", "file_id": upload(process, name, data)} for name, data in uploads.items()
    ]
    job_id = order_sources(process, collection, sources, **wanted)
    drain(process)
    return counts(process, job_id)


def test_new_documents_are_added_and_found(process: Process, collection: str) -> None:
    outcome, job = ingest(process, collection, {"cats": CATS, "trains": TRAINS})

    assert outcome == {"added": 2}
    assert job.result is not None
    assert job.result["errors"] == []
    assert (job.progress_done, job.progress_total, job.progress_unit) == (2, 2, "documents")
    stores_agree(process, collection)
    texts = live_texts(process, collection)
    assert job.result["chunks"] == sum(len(each) for each in texts.values())
    assert search(process, collection, "departure time of the train", k=1)[0].source == "trains"


def test_unchanged_documents_are_skipped_and_not_written_again(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    before = process.store.ids(collection)

    outcome, job = ingest(process, collection, {"cats": CATS, "trains": TRAINS})

    assert outcome == {"skipped": 2}
    assert job.result is not None
    assert job.result["chunks"] == 0
    assert process.store.ids(collection) == before
    stores_agree(process, collection)


def test_a_changed_document_replaces_the_old_one_in_both_stores(
    process: Process, collection: str
) -> None:
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    old = process.store.ids(collection)
    id_ = document_id(process, collection, "cats")

    outcome, _ = ingest(process, collection, {"cats": "Dogs bark at night.", "trains": TRAINS})

    assert outcome == {"replaced": 1, "skipped": 1}
    assert live_texts(process, collection)["cats"] == ["Dogs bark at night."]
    assert document_id(process, collection, "cats") == id_
    assert len(process.store.ids(collection) - old) == 1
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
    told = {error["source"]: error["message"] for error in result["errors"]}
    assert list(told) == ["empty.txt", "photo.png", f"file {unknown}", "lost.txt"]
    assert "empty" in told["empty.txt"]
    assert ".png" in told["photo.png"]
    assert "POST /v1/files" in told[f"file {unknown}"]
    assert "no longer has" in told["lost.txt"]
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


@pytest.mark.parametrize(
    ("splitter", "text_", "first"),
    [
        (
            {"type": "token", "chunk_size": 16, "chunk_overlap": 4},
            "one two three four five six seven eight nine ten " * 6,
            "one two three four five six seven eight nine ten one two three four five six",
        ),
        (
            {"type": "character", "chunk_size": 30, "chunk_overlap": 0},
            "First paragraph here.\n\nSecond paragraph here.\n\nThird paragraph here.",
            "First paragraph here.",
        ),
        (
            {"type": "markdown", "chunk_size": 60, "chunk_overlap": 0},
            "# Guide\n\nWelcome.\n\n## Install\n\nRun it.\n\n## Use\n\nPress the key.",
            "# Guide\n\nWelcome.",
        ),
    ],
    ids=["token", "character", "markdown"],
)
def test_every_splitter_goes_the_whole_way(
    process: Process, collection: str, splitter: dict[str, Any], text_: str, first: str
) -> None:
    outcome, _ = ingest(process, collection, {"d": text_}, splitter=splitter)

    assert outcome == {"added": 1}
    chunks = live_texts(process, collection)["d"]
    assert chunks[0] == first
    assert len(chunks) > 2
    stores_agree(process, collection)
    for hit in search(process, collection, text_[:40], k=20):
        assert text_[hit.start : hit.start + len(hit.text)] == hit.text


def test_rows_of_tables_and_records_carry_their_metadata_into_search(
    process: Process, collection: str
) -> None:
    csv = "id,question,answer\n1,When do you open?,At nine.\n2,Where are you?,In Busan.\n"
    jsonl = '{"text": "The boiler was repaired.", "year": 2021, "done": true}\n' * 1
    outcome = ingest_files(
        process,
        collection,
        {"faq.csv": csv.encode("cp949"), "log.jsonl": jsonl.encode()},
        csv={"content_columns": ["question", "answer"], "metadata_columns": ["id"]},
        metadata={"team": "ops"},
    )

    assert outcome == {"added": 2}
    stores_agree(process, collection)
    (hit,) = search(process, collection, "where is the place?", k=1)
    assert (hit.source, "Busan" in hit.text, hit.metadata["team"]) == ("faq.csv", True, "ops")
    assert str(hit.metadata["id"]) == "2"
    (hit,) = search(process, collection, "anything", k=1, search={"filter": {"year": 2021}})
    assert (hit.source, hit.metadata["done"]) == ("log.jsonl", True)


def test_a_filter_leaves_only_what_matches_all_of_it(process: Process, collection: str) -> None:
    ingest(process, collection, {"a": CATS}, metadata={"team": "zoo", "year": 2020})
    ingest(process, collection, {"b": CATS}, metadata={"team": "zoo", "year": 2021})
    ingest(process, collection, {"c": CATS}, metadata={"team": "rail", "year": 2021})

    def found(**filter_: Any) -> set[str]:
        return {
            hit.source
            for hit in search(process, collection, "cat", k=20, search={"filter": filter_})
        }

    assert found(team="zoo") == {"a", "b"}
    assert found(team="zoo", year=2021) == {"b"}
    assert found(source="c") == {"c"}
    assert found(team="nobody") == set()


def test_korean_text_under_a_korean_name_in_a_korean_encoding(
    process: Process, collection: str
) -> None:
    cats = "고양이는 하루의 대부분을 잔다. 고양이는 평균 열다섯 시간을 잔다."
    trains = "부산행 기차는 아홉 시에 출발한다. 기차는 삼십 분마다 있다."

    outcome = ingest_files(
        process,
        collection,
        {"고양이 이야기.txt": cats.encode("cp949"), "기차 시간표.txt": trains.encode()},
    )

    assert outcome == {"added": 2}
    texts = live_texts(process, collection)
    assert set(texts) == {"고양이 이야기.txt", "기차 시간표.txt"}
    assert texts["고양이 이야기.txt"][0].startswith("고양이는 하루의")
    stores_agree(process, collection)
    hit = search(process, collection, "부산행 기차는 아홉 시에 출발한다.", k=1)[0]
    assert hit.source == "기차 시간표.txt"
    assert hit.text in trains


def test_text_sent_inline_may_carry_any_name(process: Process, collection: str) -> None:
    outcome, _ = ingest(process, collection, {"annual report.pdf": CATS, "photo.png": TRAINS})

    assert outcome == {"added": 2}


def test_a_text_without_a_name_is_named_by_its_content(process: Process, collection: str) -> None:
    sources = [{"type": "text", "text": CATS}, {"type": "text", "text": CATS}]
    job_id = order_sources(process, collection, sources)
    drain(process)

    assert counts(process, job_id) == {"added": 1, "skipped": 1}
    (name,) = live_texts(process, collection)
    assert name.startswith("text-")


def test_a_job_for_a_collection_that_is_gone_fails_and_says_so(process: Process) -> None:
    job_id = order(process, "no-such-collection", {"a": CATS})
    drain(process)

    job = job_of(process, job_id)
    assert (job.state, job.dead) == ("failed", False)
    assert job.error is not None
    assert job.error["type"] == "NotFound"


def test_metadata_that_chroma_would_refuse_does_not_cost_a_document(
    process: Process, collection: str
) -> None:
    big = """[{"text": "fine", "n": 99999999999999999999999, "$id": "x", "#": 1, "": 2,
        "chroma:document": "y", "kept": "z"}]"""
    outcome = ingest_files(process, collection, {"a.json": big.encode(), "b.txt": CATS.encode()})

    assert outcome == {"added": 2}
    stores_agree(process, collection)
    (hit,) = search(process, collection, "fine", search={"filter": {"kept": "z"}})
    assert (hit.text, hit.metadata["$id"], hit.metadata["#"]) == ("fine", "x", 1)


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

    assert collect_forsaken(process) == 3

    assert set(live_texts(process, collection)) == {"kept"}
    assert live_texts(process, collection)["kept"][0] in CATS
    stores_agree(process, collection)
