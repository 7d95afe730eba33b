"""What ingestion refuses before it costs much, and does again although the bytes are the same."""

from typing import Any

import pytest

from shared.config import Settings
from shared.tables import Chunk
from tests.integration.ingestion import (
    counts,
    ingest,
    ingest_files,
    live_texts,
    load_all,
    order,
    order_sources,
    search,
    stores_agree,
    upload,
)
from tests.integration.job_runner import drain, job_of, make_process
from workers.attempts.process import Process

KOREAN = "창고 출입 규정은 매년 삼월에 다시 정하고 모두에게 알립니다. 담당자는 박지원입니다."
SMALL = {"type": "recursive", "chunk_size": 100, "chunk_overlap": 0}


def errors(process: Process, job_id: Any) -> dict[str, str]:
    result = job_of(process, job_id).result
    assert result is not None
    return {error["source"]: error["message"] for error in result["errors"]}


@pytest.mark.parametrize(
    ("source", "settings_"),
    [
        ("a " * 2000, {"splitter": SMALL}),
        ("a" * 2000, {"splitter": SMALL}),
        ("# a\n\nb\n\n" * 20, {"splitter": SMALL | {"type": "markdown"}}),
        ("word " * 2000, {"splitter": SMALL | {"type": "token"}}),
        (("a" * 90 + "\n\n") * 20, {"splitter": SMALL | {"type": "character"}}),
    ],
    ids=["words", "letters", "markdown", "token", "character"],
)
def test_a_document_of_too_many_chunks_fails_alone(
    settings: Settings, process: Process, collection: str, source: str, settings_: dict[str, Any]
) -> None:
    strict = make_process(settings, max_document_chunks=10)
    try:
        job_id = order(strict, collection, {"large": source, "small": "One."}, **settings_)
        drain(strict)

        assert counts(strict, job_id) == {"added": 1, "failed": 1}
        message = errors(strict, job_id)["large"]
        assert "more than 10 chunks" in message
        assert "SLUICE_MAX_DOCUMENT_CHUNKS" in message
    finally:
        strict.close()
    stores_agree(process, collection)


def test_rows_beyond_the_limit_fail_alone(
    settings: Settings, process: Process, collection: str
) -> None:
    strict = make_process(settings, max_document_chunks=10)
    try:
        rows = "text\n" + "".join(f"row {n}\n" for n in range(10))
        sources = [
            {"type": "file", "file_id": upload(strict, name, data.encode())}
            for name, data in {"ten.csv": rows, "eleven.csv": rows + "one more\n"}.items()
        ]
        job_id = order_sources(strict, collection, sources)
        drain(strict)

        assert counts(strict, job_id) == {"added": 1, "failed": 1}
        assert "more than 10 sections, rows or records" in errors(strict, job_id)["eleven.csv"]
    finally:
        strict.close()
    stores_agree(process, collection)


def test_a_job_of_too_many_chunks_takes_small_documents_and_no_large_ones(
    settings: Settings, process: Process, collection: str
) -> None:
    """20 chunks a job of at most 10 sources: of those with more than two, not more than 20."""
    strict = make_process(
        settings, max_job_chunks=20, max_sources_per_job=10, load_step_documents=2
    )
    try:
        large = "x" * 800  # eight chunks
        texts = {name: large + name for name in "abc"} | {"d": "small"}
        job_id = order(strict, collection, texts, splitter=SMALL)
        drain(strict)

        assert counts(strict, job_id) == {"added": 3, "failed": 1}
        (message,) = errors(strict, job_id).values()
        assert "the job has" in message
        assert "SLUICE_MAX_JOB_CHUNKS" in message
    finally:
        strict.close()
    stores_agree(process, collection)


def test_metadata_that_each_chunk_would_carry_is_bounded(
    settings: Settings, process: Process, collection: str
) -> None:
    strict = make_process(settings, max_document_metadata_chars=10_000)
    try:
        line = '{"text": "' + "word " * 400 + '", "note": "' + "n" * 2000 + '"}'
        fine = '{"text": "short", "note": "' + "n" * 2000 + '"}'
        sources = [
            {"type": "file", "file_id": upload(strict, name, data.encode())}
            for name, data in {"a.jsonl": line, "b.jsonl": fine}.items()
        ]
        job_id = order_sources(strict, collection, sources, splitter=SMALL)
        drain(strict)

        assert counts(strict, job_id) == {"added": 1, "failed": 1}
        assert "SLUICE_MAX_DOCUMENT_METADATA_CHARS" in errors(strict, job_id)["a.jsonl"]
    finally:
        strict.close()
    stores_agree(process, collection)


def test_a_document_of_thousands_of_chunks_is_written_whole(
    process: Process, collection: str
) -> None:
    """More rows than one statement writes; only the load steps are run."""
    text = "".join(f"line number {n} of this text, which is cut into pieces\n" for n in range(2500))
    order(process, collection, {"long": text}, splitter=SMALL | {"chunk_size": 64})
    load_all(process)

    with process.ledger.read() as session:
        rows = session.query(Chunk).order_by(Chunk.version_id, Chunk.ordinal).all()
    assert [row.ordinal for row in rows] == list(range(len(rows)))
    assert len(rows) == 2500
    assert all(text[row.start : row.start + len(row.text)] == row.text for row in rows)


def once(process: Process, collection: str, name: str, data: bytes, type_: str | None) -> Any:
    source = {"type": "file", "file_id": upload(process, name, data, content_type=type_)}
    job_id = order_sources(process, collection, [source])
    drain(process)
    return counts(process, job_id)


def test_a_correction_of_the_charset_is_no_repetition(process: Process, collection: str) -> None:
    """Bytes that fit both labels: with the second they are another text."""
    data = b"caf\xe9 cr\xe8me"
    assert once(process, collection, "a.txt", data, "text/plain; charset=iso-8859-1") == {
        "added": 1
    }
    assert once(process, collection, "a.txt", data, "text/plain; charset=ISO-8859-1") == {
        "skipped": 1
    }
    assert once(process, collection, "a.txt", data, "text/plain; charset=windows-1251") == {
        "replaced": 1
    }
    assert live_texts(process, collection)["a.txt"] == [data.decode("cp1251")]
    stores_agree(process, collection)


@pytest.mark.parametrize("first", [None, "application/octet-stream", "text/plain"])
def test_a_correction_of_the_type_is_no_repetition(
    process: Process, collection: str, first: str | None
) -> None:
    data = "이름,도시\n김하나,서울\n이두리,부산\n".encode()
    assert once(process, collection, "table", data, first) == {"added": 1}
    assert once(process, collection, "table", data, "text/csv") == {"replaced": 1}
    assert once(process, collection, "table", data, "text/csv; charset=utf-8") == {"skipped": 1}
    assert live_texts(process, collection)["table"] == [
        "이름: 김하나\n도시: 서울",
        "이름: 이두리\n도시: 부산",
    ]
    stores_agree(process, collection)


def test_other_columns_are_no_repetition(process: Process, collection: str) -> None:
    rows = {"a.csv": b"id,text\n7,hello\n"}
    assert ingest_files(process, collection, rows) == {"added": 1}
    assert ingest_files(process, collection, rows, csv={"content_columns": ["text"]}) == {
        "replaced": 1
    }
    assert live_texts(process, collection)["a.csv"] == ["text: hello"]


def test_a_label_that_lies_never_makes_mojibake(process: Process, collection: str) -> None:
    page = f'<html><meta charset="euc-kr"><p>{KOREAN}</p>'.encode("euc-kr")
    for name, data in {"a.html": page, "a.txt": KOREAN.encode("euc-kr")}.items():
        for label in ("iso-8859-1", "us-ascii"):
            once(process, collection, name, data, f"text/x; charset={label}")
            assert KOREAN.startswith(live_texts(process, collection)[name][0])


def test_columns_of_numbers_and_truth_values_are_found_by_filters(
    process: Process, collection: str
) -> None:
    rows = "text,year,open,code\nThe kite festival.,2024,true,007\nThe boat race.,2023,false,123\n"
    ingest_files(
        process, collection, {"a.csv": rows.encode()},
        csv={"metadata_columns": ["year", "open", "code"]},
    )  # fmt: skip

    def texts_where(**filter_: Any) -> list[str]:
        hits = search(process, collection, "event", k=5, search={"filter": filter_})
        return [hit.text for hit in hits]

    assert texts_where(year=2024) == ["text: The kite festival."]
    assert texts_where(open=False) == ["text: The boat race."]
    assert texts_where(code="007") == ["text: The kite festival."]
    assert texts_where(code="123") == ["text: The boat race."]
    assert texts_where(year=1999) == []


def test_an_overlap_is_less_than_half_of_small_chunks_unless_it_is_set(
    process: Process, collection: str
) -> None:
    outcome, job = ingest(
        process, collection, {"a": "word " * 100}, splitter={"type": "recursive", "chunk_size": 50}
    )
    assert outcome == {"added": 1}
    assert job.input["splitter"]["chunk_overlap"] == 24
